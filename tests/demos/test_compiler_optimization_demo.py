"""The parts of the demo: its figures are of right results alone."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import torch
from demos import compiler_optimization
from demos.compiler_optimization import draw, fuse, make_stack, measure


def tokens() -> torch.Tensor:
    return torch.randn(1, 33, 16, generator=torch.Generator().manual_seed(0))


def test_figures_of_a_right_variant(tmp_path):
    stack = make_stack(16, 2)
    for training in (False, True):
        figures, wrong = measure("small", {"original": stack, "SDPA": fuse(stack)}, tokens(), training, 3)
        (figure,) = figures
        assert wrong == []
        assert (figure["mode"], figure["length"], figure["pairs"]) == (
            "training" if training else "inference",
            33,
            3,
        )
        assert 0 < figure["low"] <= figure["gain"] <= figure["high"]
        assert figure["gain"] == figure["original_ms"] / figure["ms"]
        draw([{**figure, "mode": "inference"}], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_wrong_variant_has_no_figure():
    stack = make_stack(16, 2)
    other = copy.deepcopy(stack)
    with torch.no_grad():
        other[3].down.bias += 1e-3
    for training in (False, True):
        figures, (line,) = measure("small", {"original": stack, "other": other}, tokens(), training, 3)
        assert figures == []
        assert line.startswith("small, 33 tokens, other: error ")


def test_stacks_have_equal_weights():
    one, other = make_stack(16, 2), make_stack(16, 2)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_the_quick_run(tmp_path):
    demo = Path(compiler_optimization.__file__)
    command = [sys.executable, demo, "--quick", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "compiler_optimization.json").read_text())
    variants = {figure["variant"]: figure for figure in record["figures"]}
    assert variants.keys() == {"SDPA by hand", "torch.compile", "advice"}
    for figure in variants.values():
        assert figure["length"] == 1024
        assert 0 < figure["low"] <= figure["gain"] <= figure["high"]
        assert figure["error"] <= max(4 * figure["original_error"], 2e-6)
    assert record["wrong"] == []
    assert (tmp_path / "compiler_optimization.png").stat().st_size > 1000
