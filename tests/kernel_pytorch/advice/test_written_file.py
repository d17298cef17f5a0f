"""The written file rebuilds the optimised model where ``kernel_pytorch`` cannot be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from advice_reports import COMPILE, RESULT, SDPA, failed, nothing_kept, report

from kernel_pytorch.advice.facts import Options
from kernel_pytorch.advice.write import save, source_file
from kernel_pytorch.jobs.atomic import JobFolderError

MODEL = """
import math
import helper
import torch
from torch import nn

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(-2, -1) / math.sqrt(16)
        return self.dropout(torch.softmax(scores, -1) @ self.value(x)) * helper.ONE

def make_model():
    torch.manual_seed(7)
    return Attention()
"""
# What a user does with the written file, where this package is not.
USE = """
import sys
sys.modules["kernel_pytorch"] = sys.modules["dilated_attention_pytorch"] = None
sys.path.insert(0, sys.argv[1])
import fast, torch
"""
COMPARE = """
first, second = fast.original(), fast.make_model()
assert first is not second and not second.training
x = torch.randn(2, 63, 16)
with torch.no_grad(), torch.profiler.profile() as profile:
    found = second(x)
assert [event.key for event in profile.key_averages() if event.key == "aten::scaled_dot_product_attention"]
with torch.no_grad():
    torch.testing.assert_close(found, first.eval()(x), rtol=1e-5, atol=1e-6)
assert type(first).__module__ == type(second).__module__ == "model"
print("equal")
"""


def use(folder: Path, script: str) -> str:
    command = [sys.executable, "-c", USE + script, folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kept(*trials, **changes):
    """A report in which these were kept."""
    return report(**{"trials": trials, **changes})


def simple(*source):
    return replace(COMPILE, strategy="a change", source=source)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The user's files."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "helper.py").write_text("ONE = 1.0\n")
    return folder


def test_the_attention_pass_without_this_package(folder):
    target = f"{folder}/model.py:make_model"
    save(kept(SDPA, target=target), folder / "fast.py")
    moved = folder.rename(folder.with_name("moved"))
    assert use(moved, COMPARE) == "equal\n"


def test_at_most_60_lines_beside_the_attention_pass():
    text = source_file(report())
    own, _, rewrite = text.partition('"""Write attention by hand')
    assert rewrite.rstrip().endswith("unchanged(*inputs)")
    assert "kernel_pytorch" not in text
    assert len(own.splitlines()) <= 60


def test_the_docstring_says_where_it_is_from():
    said = ast.get_docstring(ast.parse(source_file(report())))
    figures = (
        "2.10 (2.02 to 2.17) times",
        "Xeon of a test",
        "2 threads",
        "2.13.0",
        "2026-11-02T10:20:30+00:00",
    )
    for figure in (*figures, "model.py:make_model", "in a fresh process", "attention to SDPA, torch.compile"):
        assert figure in said, figure
    lossy = kept(SDPA, result=replace(RESULT, lossless=False, error=0.0052))
    said = ast.get_docstring(ast.parse(source_file(lossy)))
    assert "relative error 0.0052 against the original in float64" in said


def test_names_cannot_break_out_of_the_docstring():
    evil = 'a\\"""\nimport os; os.abort()\n"""'
    tree = ast.parse(source_file(kept(SDPA, target=evil)))
    assert "os" not in {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }


def test_changes_are_made_in_their_order_with_imports_and_definitions_once(folder):
    define = [
        "from torch import nn",
        "import helper",
        "",
        "# twice",
        "def double(model):",
        "    model.gain *= 2",
    ]
    first = simple(*define, "", "model.gain = 3", "# and again", "double(model)", "# last")
    second = replace(first, strategy="another", source=(*define, "double(model)"))
    save(kept(first, second, target=f"{folder}/model.py:Attention"), folder / "fast.py")
    text = (folder / "fast.py").read_text()
    assert text.count("def double") == text.count("import helper") == text.count("# twice") == 1
    assert "    # and again\n" in text
    assert "    # last\n" in text
    assert use(folder, "print(fast.make_model().gain)") == "12\n"


def test_a_model_rather_than_a_factory_and_another_module_of_that_name(folder):
    (folder / "model.py").write_text(MODEL + "\nclass Made:\n    one = make_model()\n")
    change = simple("model.extra = 1", "model = torch.nn.Sequential(model)")
    save(kept(change, target=f"{folder}/model.py:Made.one"), folder / "fast.py")
    script = (
        "sys.modules['model'] = torch\nmade = fast.make_model()\nprint(type(made).__name__, made[0].extra)"
    )
    assert use(folder, script) == "Sequential 1\n"


def test_a_model_that_the_file_holds_is_not_changed(folder):
    (folder / "model.py").write_text(MODEL + "\nmade = make_model()\n")
    save(kept(simple("model.extra = 1"), target=f"{folder}/model.py:made"), folder / "fast.py")
    script = "one, other = fast.make_model(), fast.make_model()\nimport model\n"
    script += "print(one is other, hasattr(model.made, 'extra'))"
    assert use(folder, script) == "False False\n"


def test_training_is_rebuilt_in_training_mode(folder):
    target = f"{folder}/model.py:make_model"
    save(kept(simple("pass"), target=target, options=Options(training=True)), folder / "fast.py")
    assert use(folder, "print(fast.make_model().training)") == "True\n"
    assert "no_grad" not in (folder / "fast.py").read_text()


def test_where_the_file_of_the_original_is_unknown():
    namespace = {}
    exec(source_file(kept(simple("model.found = True"), target="Stack")), namespace)
    assert "make_model" not in namespace

    class Model:
        training = True

        def eval(self):
            self.training = False

    model = namespace["optimise"](Model())
    assert model.found
    assert not model.training


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (nothing_kept(), "nothing was kept"),
        (failed(), "nothing was kept: the model failed"),
        (
            kept(SDPA, result=None),
            "nothing is kept: attention to SDPA could not be confirmed",
        ),
        (
            report(result=replace(RESULT, verdict="reverted", reason="no")),
            "all was reverted",
        ),
        (kept(simple()), "a change cannot be written: it gives no source"),
        (kept(simple("model =")), "a change cannot be written: invalid syntax"),
        (kept(simple("from . import helper")), "cannot be written: a relative import has no meaning"),
        (kept(simple("def optimise(): pass")), "a change cannot be written: the name optimise is taken"),
        (
            kept(simple("def f(): pass"), replace(simple("def f(): return 1"), strategy="b")),
            "b cannot be written: f is defined in two ways",
        ),
        (
            kept(SDPA, simple("def checked(): pass")),
            "checked: defined by a strategy and by the attention pass",
        ),
    ],
)
def test_what_cannot_be_written(given, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        source_file(given)
    with pytest.raises(ValueError, match=reason):
        given.write(tmp_path / "fast.py")
    assert list(tmp_path.iterdir()) == []


def test_never_over_the_users_file(folder):
    (folder / "link.py").hardlink_to(folder / "model.py")
    (folder / "soft.py").symlink_to("model.py")
    for name in ("model.py", "link.py", "soft.py"):
        with pytest.raises(ValueError, match="would overwrite the file of the original model"):
            report().write(folder / name, f"{folder}/model.py:make_model")
    assert (folder / "model.py").read_text() == MODEL


def test_what_was_there_stays_if_it_cannot_be_written(folder, monkeypatch):
    (folder / "fast.py").write_text("mine")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(JobFolderError, match="No space left on device"):
        report().write(folder / "fast.py")
    assert sorted(path.name for path in folder.iterdir()) == ["fast.py", "helper.py", "model.py"]
    assert (folder / "fast.py").read_text() == "mine"
