"""The code of docs/models.md runs, the example around a ring on two ranks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from ring_examples import run_example
from tiny import TINY
from torch import Tensor
from torch.distributed import ProcessGroup
from worlds import World

from dilated_attention_pytorch import LongNetEncoder
from dilated_attention_pytorch.cli import main

PAGE = Path(__file__).parents[3] / "docs/models.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def run(blocks: list[str]) -> dict[str, object]:
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_pages_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books.txt").write_text("All happy families are alike. " * 100)
    assert main(["train", "--data", "books.txt", "--run", "books", "--steps", "1", *TINY]) == 0
    blocks = [block for block in BLOCKS if not block.startswith("# torchrun")]
    assert len(blocks) == len(BLOCKS) - 1 == 8
    names = run(blocks)
    assert names["loss"].item() == pytest.approx(math.log(256) + 0.5, abs=0.3)
    assert len(names["continuation"]) == 20
    assert names["byte"] == names["continuation"][-1:]
    assert names["states"].shape == (1, 15, 17, 32)
    assert all(parameter.isfinite().all() for parameter in names["large"].parameters())


def ring_example(group: ProcessGroup) -> tuple[Tensor, Tensor, LongNetEncoder]:
    (code,) = [block for block in BLOCKS if block.startswith("# torchrun")]
    image, states, encoder = run_example(code, str(PAGE))
    return image, states.detach(), encoder


def test_the_grid_around_a_ring_has_the_states_of_one_process(two_ranks: World):
    block = next(block for block in BLOCKS if "along_curve = " in block)
    for image, states, encoder in two_ranks.results(ring_example):
        code = block.replace("image = torch.randn", "random = torch.randn")
        names: dict[str, object] = {"torch": torch, "image": image, "encoder": encoder}
        exec(compile(code, str(PAGE), "exec"), names)
        torch.testing.assert_close(states, names["states"].detach(), rtol=0, atol=1e-12)
