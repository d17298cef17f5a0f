"""Models of which the advisor's counts and predictions are checked, and what a hand counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, LENGTH, WIDTH, HEADS = 4, 256, 128, 4


class ByHand(nn.Module):
    """Multi-head self-attention without a mask; ``fused``: by one call."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [batch, length, width]."""
        heads = self.into(x).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS), -1) @ v
        outputs: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return outputs


class First(nn.Module):
    """A recurrent layer's outputs, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [batch, length, width]."""
        outputs: Tensor = self.layer(x)[0]
        return outputs


class Residual(nn.Module):
    """A layer norm and two linear layers on a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [..., width]."""
        outputs: Tensor = x + self.inner(x)
        return outputs


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 8, 1),
    )


def _normed_images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3))


def _tokens() -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH)


def _pictures() -> Tensor:
    return torch.randn(BATCH, 3, 64, 64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its input and, where it is counted by hand, its FLOPs."""

    make: Callable[[], nn.Module]
    draw: Callable[[], Tensor] = _tokens
    flops: int | None = None


_TOKENS = BATCH * LENGTH
_LINEARS = 2 * _TOKENS * WIDTH * 4 * WIDTH
"""Of the projections of an attention."""
_SCORES = 2 * 2 * BATCH * LENGTH**2 * WIDTH
_SIDE = (64 - 3) // 2 + 1
CASES = {
    "MLP": Case(make=_perceptron, flops=2 * _TOKENS * 2 * WIDTH * 4 * WIDTH),
    "attention by hand": Case(make=ByHand, flops=_LINEARS + _SCORES),
    "fused attention": Case(make=lambda: ByHand(fused=True), flops=_LINEARS + _SCORES),
    "encoder layer": Case(
        make=lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True),
        flops=_LINEARS + _SCORES + 2 * _TOKENS * 2 * WIDTH * 4 * WIDTH,
    ),
    "convolutions": Case(
        make=_images,
        draw=_pictures,
        flops=2 * BATCH * (64**2 * 32 * 3 * 9 + _SIDE**2 * 64 * 32 * 9 + _SIDE**2 * 8 * 64),
    ),
    "convolutions, batch norm": Case(make=_normed_images, draw=_pictures),
    "LSTM": Case(
        make=lambda: First(nn.LSTM(WIDTH, WIDTH, batch_first=True)), flops=2 * _TOKENS * 4 * WIDTH * 2 * WIDTH
    ),
    "GRU": Case(
        make=lambda: First(nn.GRU(WIDTH, WIDTH, batch_first=True)), flops=2 * _TOKENS * 3 * WIDTH * 2 * WIDTH
    ),
    "residual blocks": Case(make=lambda: nn.Sequential(*(Residual() for _ in range(4)))),
    "embedding": Case(
        make=lambda: nn.Sequential(nn.Embedding(1000, WIDTH), nn.Linear(WIDTH, 1000)),
        draw=lambda: torch.randint(1000, (BATCH, LENGTH)),
    ),
}
