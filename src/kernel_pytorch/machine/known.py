"""Arithmetic with values that may be unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def total(values: Iterable[_Number | None]) -> _Number | None:
    """The sum; None if any value is unknown, or if there are no values."""
    summed: _Number | None = None
    for value in values:
        if value is None:
            return None
        summed = value if summed is None else summed + value
    return summed
