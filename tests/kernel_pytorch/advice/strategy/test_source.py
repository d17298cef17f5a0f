"""The lines of written files: they need nothing of this package, and do what ``apply`` did."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import strategy_models
import torch

from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy.checkpointing import MemoryBudget
from kernel_pytorch.advice.strategy.compile import Compile, CompileBlocks, CompileDynamic
from kernel_pytorch.advice.strategy.freezing import Freezing
from kernel_pytorch.advice.strategy.graph_passes import add_pass
from kernel_pytorch.advice.strategy.max_autotune import MaxAutotune
from kernel_pytorch.advice.strategy.registry import built_in

TOKENS = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
EAGER = {
    "fused projections": ("stack", "eval"),
    "channels_last": ("images", "eval"),
    "conv-bn folding": ("images", "eval"),
    "inference mode": ("stack", "eval"),
    "checkpointing of 50% of the blocks": ("stack", "train"),
    "bfloat16 autocast": ("stack", "eval"),
    "bfloat16 weights": ("stack", "eval"),
    "int8": ("stack", "eval"),
}


def inputs(factory: str) -> torch.Tensor:
    return IMAGES if factory == "images" else TOKENS


def test_lines_give_equal_outputs_where_this_package_is_not(tmp_path):
    by_name = {strategy.name: strategy for strategy in built_in()}
    expected, script = (
        {},
        [
            "import sys, torch",
            "sys.modules['kernel_pytorch'] = None",
            "from strategy_models import images, stack",
            f"inputs = torch.load({str(tmp_path / 'inputs.pt')!r})",
            "outputs = {}",
        ],
    )
    for name, (factory, mode) in EAGER.items():
        strategy = by_name[name]
        model = getattr(getattr(strategy_models, factory)(), mode)()
        model = strategy.apply(model, Sample.of(inputs(factory)))
        expected[name] = model(inputs(factory)).detach().clone()
        lines = strategy.source()
        ast.parse("\n".join(lines))
        assert max(map(len, lines)) <= 110
        script += [f"model = {factory}().{mode}()", *lines]
        script += [f"outputs[{name!r}] = model(inputs[{factory!r}]).detach().clone()"]
    script += [f"torch.save(outputs, {str(tmp_path / 'outputs.pt')!r})"]
    torch.save({"stack": TOKENS, "images": IMAGES}, tmp_path / "inputs.pt")
    (tmp_path / "written.py").write_text("\n".join(script))
    support = Path(strategy_models.__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = [{str(support)!r}]; exec(open('written.py').read())",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "outputs.pt")
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, rtol=1e-5, atol=1e-6, msg=name)


def test_the_line_for_an_optimizer(monkeypatch):
    strategy = next(one for one in built_in() if one.name == "fused optimizer")
    space: dict = {}
    exec("\n".join(strategy.source()), space)
    optimizer = torch.optim.AdamW(strategy_models.stack(1).parameters(), lr=0.5)
    fused = space["with_fused_step"](optimizer)
    assert fused.param_groups[0]["fused"]
    assert fused.param_groups[0]["lr"] == 0.5
    assert strategy.source()[-1] == "# optimizer = with_fused_step(optimizer)"


@pytest.mark.parametrize(
    "make",
    [Compile, CompileBlocks, CompileDynamic, Freezing, MaxAutotune, lambda: MemoryBudget(0.5)],
    ids=["whole", "blocks", "dynamic", "freezing", "max-autotune", "budget"],
)
@pytest.mark.parametrize("passes", [False, True], ids=["", "after a pass"])
def test_lines_of_compilation_mark_alike(make, passes, monkeypatch):
    """Marks are compared, nothing is compiled: the arguments of ``compile`` are recorded."""
    marks: list = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: marks.append((type(module).__name__, options))
    )
    model, strategy = strategy_models.stack(3).eval(), make()
    if passes:
        add_pass(model, lambda graph: graph)
    twin = copy.deepcopy(model)
    strategy.apply(model, Sample.of(TOKENS))
    applied, marks[:] = list(marks), []
    backends: list = []

    def attention_backend(inner):
        backends.append(inner)
        return inner

    space = {"model": twin, "attention_backend": attention_backend}
    exec("\n".join(strategy.source()), space)
    assert len(backends) == passes

    def compared(found):
        return [
            (name, {key: value for key, value in options.items() if value is not None and key != "backend"})
            for name, options in found
        ]

    assert compared(marks) == compared(applied)
    assert type(twin).__name__ == "Stack"
    assert (type(twin) is strategy_models.Stack) == (make is not Freezing)
    assert len({id(options["backend"]) for _, options in marks}) == 1
