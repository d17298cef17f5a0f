"""What docs/advice.md says is what the code has, and its code runs."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

import pytest
import torch
from advice_facts import facts
from torch import nn

from kernel_pytorch.advice.analysis import findings
from kernel_pytorch.advice.facts import Expectation, ModuleCost, Options
from kernel_pytorch.advice.inputs import GRAMMAR
from kernel_pytorch.advice.prove.session import Session
from kernel_pytorch.advice.prove.state import preserved
from kernel_pytorch.advice.prove.task import Task
from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy import registry
from kernel_pytorch.cli import advise

PAGE = (Path(__file__).parents[3] / "docs/advice.md").read_text()


def section(title: str) -> str:
    """The text below a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def code(title: str, language: str = "python") -> str:
    """The first block of a section."""
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)[0]


def rows(title: str) -> list[list[str]]:
    """Cells of the section's tables."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_options_are_those_of_the_command():
    parser = argparse.ArgumentParser(add_help=False)
    advise.add_arguments(parser)
    options = {name for action in parser._actions for name in action.option_strings}
    shown = set(re.findall(r"`(--[\w-]+)", section("The command")))
    assert shown == options


def test_the_grammar_is_that_of_the_command():
    assert f"```\n{GRAMMAR}```\n" in section("The command")


def test_the_findings_are_those_that_there_are():
    source = Path(findings.__file__).read_text()
    kinds = {*re.findall(r'kind="([^"]+)"', source), *re.findall(r'"((?:training )?will not fit)"', source)}
    shown = {name for row in rows("Findings") for name in re.findall(r"`([^`]+)`", row[0])}
    assert shown == kinds


def test_the_strategies_are_those_built_in():
    def without_number(name: str) -> str:
        return re.sub(r"\d[\d.%]*", "N", name)

    shown = {}
    for names, level, needs, equal, _ in rows("Strategies")[1:]:
        first, *others = names.split(", ")
        name = first.strip("`")
        for one in (name, *(re.sub(r"\d[\d.%]*", other, name) for other in others)):
            shown[one] = (level, {*filter(None, needs.split(", "))}, equal == "yes")
    called = {"gpu": "GPU"}
    assert shown == {
        strategy.name: (
            strategy.level,
            {called.get(need, need.removeprefix("package:")) for need in strategy.needs},
            strategy.lossless,
        )
        for strategy in registry.built_in()
    }
    assert [without_number(name) for name in shown] == [
        without_number(strategy.name) for strategy in registry.built_in()
    ]


@pytest.fixture
def in_place(tmp_path, monkeypatch) -> object:
    """The page's strategy, from an installed package with the page's entry point."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "in_place.py").write_text(code("Add a strategy in 20 lines"))
    header, entry = code("Add a strategy in 20 lines", "toml").splitlines()
    assert header == f'[project.entry-points."{registry.GROUP}"]'
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{entry.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = [strategy for strategy in registry.strategies() if strategy.name == "ReLU in place"]
    assert registry.broken == []
    return found


def test_the_strategy_has_20_lines():
    lines = code("Add a strategy in 20 lines").splitlines()
    assert len([line for line in lines if line.strip()]) <= 20
    assert max(map(len, lines)) <= 110


def test_the_strategy_does_what_its_lines_do(in_place):
    relu = ModuleCost(path="1", kind="ReLU", place="", calls=1, seconds=None, flops=0)
    assert in_place.applies(facts()) == "no ReLU"
    assert in_place.applies(facts(modules=(relu,))) == Expectation(gain=1.05, reason="1 fewer results")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    x = torch.randn(4, 8)
    expected = model(x)
    changed = in_place.apply(copy.deepcopy(model), Sample.of(x))
    assert changed[1].inplace
    assert torch.equal(changed(x), expected)
    names = {"model": copy.deepcopy(model)}
    exec("\n".join(in_place.source()), names)
    assert names["model"][1].inplace
    assert torch.equal(names["model"](x), expected)
    assert not model[1].inplace


class ReadsAgain(nn.Module):
    """Adds what a ReLU was given to what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(x)
        return hidden + self.relu(hidden)


def test_the_strategy_is_reverted_where_it_is_wrong(in_place):
    torch.manual_seed(0)
    model = ReadsAgain().eval()
    with preserved(model):
        session = Session(Task(model=model, sample=Sample.of(torch.randn(4, 8))), facts())
        trial = session.trial([], in_place)
    assert trial.verdict == "reverted"
    assert trial.reason.startswith("outputs differ: the output: error ")
    assert trial.error > 0.1
    assert not model.relu.inplace


def test_the_example_from_python_runs(capsys):
    names: dict[str, object] = {}
    exec(compile(code("From Python"), "docs/advice.md", "exec"), names)
    report = names["report"]
    assert report.options == Options(level="conservative", budget_s=20)
    assert report.facts.flops.value == 2 * 8 * 2 * 64 * 256
    assert {trial.strategy for trial in report.trials} >= {"attention to SDPA", "torch.compile"}
    assert capsys.readouterr().out.count("\n") == len(report.findings) + len(report.trials) + 1
