"""Arithmetic with figures that may be unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def total(values: Iterable[_Number | None]) -> _Number | None:
    """The sum; None if one of them is unknown, or if there are none."""
    summed: _Number | None = None
    for value in values:
        if value is None:
            return None
        summed = value if summed is None else summed + value
    return summed
