"""Linear layers that keep their initial distribution."""

from __future__ import annotations

import math
import weakref
from typing import Any

from torch import nn


def initialize(linear: nn.Linear, std: float) -> None:
    """Draw normal weights and a bias of 0, now and whenever ``linear.reset_parameters()`` is called.

    Deferred initialisation (meta device, ``to_empty``) calls the ``reset_parameters`` of every module,
    parents first, so a parent alone cannot keep its children's distribution. It is no subclass, since
    quantisers replace modules whose type is exactly ``nn.Linear``.

    Args:
        linear: the layer.
        std: standard deviation of the weights.
    """
    vars(linear)["reset_parameters"] = _Draw(linear, std)
    linear.reset_parameters()


def xavier_std(linear: nn.Linear) -> float:
    """Standard deviation of Xavier normal weights of gain 1."""
    return math.sqrt(2 / (linear.in_features + linear.out_features))


class _Draw:
    def __init__(self, linear: nn.Linear, std: float) -> None:
        # Weak: in a cycle a deleted model would keep its memory until the garbage collector comes.
        self.linear = weakref.ref(linear)
        self.std = std

    def __call__(self) -> None:
        linear = self.linear()
        assert linear is not None
        nn.init.normal_(linear.weight, std=self.std)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Draw, (self.linear(), self.std)
