"""Linear layers that keep their initial distribution."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn


def xavier_linear(
    in_features: int, out_features: int, *, bias: bool = True, gain: float = 1.0, **factory: Any
) -> nn.Linear:
    """A Linear with Xavier normal weights and a bias of 0, drawn anew by its own ``reset_parameters``.

    Deferred initialisation (meta device, ``to_empty``) calls the ``reset_parameters`` of every module,
    parents first, so a parent alone cannot keep its children's distribution. It is no subclass, since
    quantisers replace modules whose type is exactly ``nn.Linear``.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``.
        gain: factor on the standard deviation ``sqrt(2 / (in_features + out_features))``.
        factory: ``device`` and ``dtype`` of the parameters.
    """
    linear = nn.Linear(in_features, out_features, bias, **factory)
    vars(linear)["reset_parameters"] = partial(_draw, linear, gain)
    linear.reset_parameters()
    return linear


def _draw(linear: nn.Linear, gain: float) -> None:
    nn.init.xavier_normal_(linear.weight, gain=gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
