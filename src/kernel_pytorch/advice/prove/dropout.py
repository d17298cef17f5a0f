"""Dropout set to 0 for a comparison. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(model: nn.Module, training: bool) -> Iterator[bool]:
    """In training, set every dropout probability that submodules hold to 0; yields whether there was one.

    Fused and compiled dropout draw other random numbers than what they replace, so equal seeds do not make
    them equal. Probabilities are the floats between 0 and 1 that submodules have under a name with "drop",
    or under any name if their class has "drop" in its name.
    """
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if training and isinstance(value, float) and 0 < value <= 1 and _about_dropout(module, name)
    ]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    try:
        yield bool(found)
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def _about_dropout(module: nn.Module, name: str) -> bool:
    return "drop" in name.lower() or "drop" in type(module).__name__.lower()
