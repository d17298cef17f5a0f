"""Bytes against counts by hand; float32 has 4 bytes, an index 8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kernel_pytorch.advice.analysis.traffic import traffic
from kernel_pytorch.advice.sample import Sample


class Call(nn.Module):
    def __init__(self, call: Callable[..., object]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.call(*inputs)


X, Y = torch.randn(4, 6), torch.randn(4, 6)
IDS = torch.tensor([1, 2])

CASES = {
    "product": (lambda x, y: x @ y.t(), (X, Y), 4 * (24 + 24 + 16)),
    "elementwise": (lambda x, y: x + y, (X, Y), 4 * 3 * 24),
    "in place": (lambda x, y: x.add_(y), (X, Y), 4 * 3 * 24),
    "expanded operand": (lambda x, y: x + y[:1].expand(4, 6), (X, Y), 4 * (24 + 6 + 24)),
    "reduction": (lambda x: x.sum(), (X,), 4 * (24 + 1)),
    "views": (lambda x: x.view(2, 12).transpose(0, 1)[1:].reshape(11, 2).unbind(0), (X,), 0),
    "copy": (lambda x: x.t().contiguous(), (X,), 4 * 2 * 24),
    "copy into": (lambda x, y: x.copy_(y), (X, Y), 4 * 2 * 24),
    "new and empty": (lambda x: torch.empty_like(x), (X,), 0),
    "zeros": (lambda x: torch.zeros_like(x), (X,), 4 * 24),
    "lookup": (lambda t, ids: t[ids], (X, IDS), 8 * 2 + 4 * 2 * 12),
    "embedding": (lambda t, ids: nn.functional.embedding(ids, t), (X, IDS), 8 * 2 + 4 * 2 * 12),
    "change of rows": (lambda x, ids, y: x.index_copy_(0, ids, y), (X, IDS, Y[:2]), 2 * (8 * 2 + 4 * 12)),
    "list in place": (lambda x, y: torch._foreach_add_([x], [y]), (X, Y), 4 * 3 * 24),
    "result given": (lambda x, y: torch.add(x, x, out=y), (X, Y), 4 * 3 * 24),
}


@pytest.mark.parametrize(("call", "inputs", "expected"), CASES.values(), ids=CASES.keys())
def test_bytes_of_one_operator(call: Callable[..., object], inputs: tuple[torch.Tensor, ...], expected: int):
    found = traffic(Call(call), Sample.of(tuple(t.clone() for t in inputs)))
    assert sum(found.values()) == expected, found


def test_by_operator_the_most_first():
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    found = traffic(model, Sample.of(X))
    assert list(found.items()) == [
        ("aten::addmm", 4 * (3 + 24 + 18 + 12)),
        ("aten::relu", 4 * (12 + 12)),
    ]
    assert sum(traffic(model, Sample.of(X), training=True).values()) > 2 * sum(found.values())
