from __future__ import annotations

import torch
from torch import nn

from kernel_pytorch.advice.analysis.parameters import parameters


class Language(nn.Module):
    """A table tied with the head, a frozen scale, a mask and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64), requires_grad=False)
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.register_buffer("mask", torch.ones(3, 3, dtype=torch.bool), persistent=False)
        self.register_buffer("view", self.scale.detach())


def test_what_is_tied_counts_once():
    held = parameters(Language())
    assert held.parameters == 10 * 4 + 4 + (4 * 4 + 4)
    assert held.trainable == 10 * 4 + (4 * 4 + 4)
    assert held.buffers == 9
    assert held.bytes_by_dtype == {"float32": 4 * 60, "float64": 8 * 4, "bool": 9}
    assert held.tied == (
        ("table.weight", "head.weight"),
        ("first.weight", "again.weight"),
        ("first.bias", "again.bias"),
    )


def test_parts_of_one_memory_are_apart():
    flat = torch.zeros(6)
    model = nn.ParameterList([nn.Parameter(flat[:2]), nn.Parameter(flat[2:])])
    held = parameters(model)
    assert held.parameters == 6
    assert held.tied == ()


def test_meta_and_lazy_models():
    with torch.device("meta"):
        held = parameters(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False)))
    assert (held.parameters, held.tied) == (12, ())
    held = parameters(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)))
    assert held.parameters == 4
    assert held.unknown == ("0.weight", "0.bias")


def test_nothing_held():
    held = parameters(nn.ReLU())
    assert (held.parameters, held.trainable, held.buffers, held.bytes_by_dtype) == (0, 0, 0, {})
