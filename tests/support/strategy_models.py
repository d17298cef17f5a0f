"""Small models for strategies: torch alone, so that written files can build them too."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """[b, n, 16] -> [b, n, 16], two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a gated feed-forward network, with norms before them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.RMSNorm(16)
        self.attention = Attention()
        self.gate, self.up = nn.Linear(16, 24, bias=False), nn.Linear(16, 24, bias=False)
        self.down = nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.first(x))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Stack(nn.Module):
    """[b, n, 16] -> [b, n, 4]."""

    def __init__(self, num_blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Images(nn.Module):
    """[b, 3, h, w] -> [b, 5]: a norm that folds, one whose input is read twice, one that is first."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.BatchNorm2d(3)
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(self.start(x))))
        y = self.conv2(x)
        return self.head((self.norm2(y) + y).mean((2, 3)))


def stack(num_blocks: int = 2) -> Stack:
    torch.manual_seed(0)
    return Stack(num_blocks)


def images() -> Images:
    """With statistics of batches that it has seen."""
    torch.manual_seed(0)
    model = Images()
    for _ in range(2):
        model(2 * torch.randn(4, 3, 9, 7) + 1)
    return model


def error(found: Any, right: Any) -> float:
    """Relative RMS."""
    found, right = found.detach(), right.detach()
    return float((found.double() - right).norm() / right.norm().clamp_min(1e-30))


def assert_equal_calls(original: nn.Module, changed: nn.Module, x: torch.Tensor) -> None:
    """As near to the original in float64 as the original is, but for a factor of four."""
    right = copy.deepcopy(original).double()(x.double()).detach()
    allowed = max(4 * error(original(x).detach(), right), 16 * torch.finfo(x.dtype).eps)
    found = changed(x).detach()
    assert found.dtype == x.dtype
    assert error(found, right) <= allowed


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the mean square of the outputs, by parameter, and of the input."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    model(x).square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "x": x.grad}


def assert_equal_gradients(original: nn.Module, changed: nn.Module, x: torch.Tensor) -> None:
    """As near to those in float64 as the original's, but for a factor of four, or to 1e-5.

    Errors are relative to the greater of a tensor's norm and 1e-3 of the whole's.
    """
    right = gradients(copy.deepcopy(original).double(), x.double())
    own = gradients(copy.deepcopy(original), x)
    found = gradients(changed, x)
    assert found.keys() == right.keys()
    whole = torch.stack([value.norm() for value in right.values()]).norm()
    for name, value in right.items():
        allowed = max(4 * (own[name].double() - value).norm(), 1e-5 * max(value.norm(), 1e-3 * whole))
        assert (found[name].double() - value).norm() <= allowed, name
