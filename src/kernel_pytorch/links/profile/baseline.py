"""Operations against those of an earlier run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..facts import Figure
from .statistics import OperationStats, label

MARGIN = 0.1
"""By which an operation may become slower or faster without being told."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An operation of one size, now and earlier."""

    operation: str
    """As of :func:`.label`."""
    now: Figure | None
    """Milliseconds; None: it is not called any more."""
    before: Figure | None
    """None: it is new."""
    ratio: Figure | None
    """Now / before, with a 95 % interval."""
    change: Literal["regression", "improvement", "none", "new", "gone"]
    """A regression is one whose interval lies beyond 10 %."""


def compare(now: Mapping[str, Figure], before: Mapping[str, Figure]) -> list[Comparison]:
    """Compare medians in milliseconds by operation; the worst ones first.

    The interval of a ratio is that of two independent medians: in logarithms the distances to the bounds add
    as their squares do (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    found = [_compared(name, now.get(name), before.get(name)) for name in {**now, **before}]
    return sorted(found, key=lambda each: -each.ratio.value if each.ratio else math.inf)


def compare_with_baseline(
    now: Sequence[OperationStats], before: Sequence[OperationStats]
) -> list[Comparison]:
    """Compare the operations of two reports; the worst ones first."""
    return compare(figures(now), figures(before))


def figures(stats: Sequence[OperationStats]) -> dict[str, Figure]:
    """Medians in milliseconds by label; what never came to an end is missing."""
    return {label(each): each.ms for each in stats if each.ms is not None}


def _compared(name: str, now: Figure | None, before: Figure | None) -> Comparison:
    ratio = None if now is None or before is None else _ratio(now, before)
    change: Literal["regression", "improvement", "none", "new", "gone"] = "none"
    if now is None or before is None:
        change = "gone" if now is None else "new"
    elif ratio is not None and ratio.low > 1 + MARGIN:
        change = "regression"
    elif ratio is not None and ratio.high < 1 - MARGIN:
        change = "improvement"
    return Comparison(operation=name, now=now, before=before, ratio=ratio, change=change)


def _ratio(now: Figure, before: Figure) -> Figure | None:
    if min(now.low, before.low) <= 0:
        return None
    down = math.hypot(math.log(now.value / now.low), math.log(before.high / before.value))
    up = math.hypot(math.log(now.high / now.value), math.log(before.value / before.low))
    value = now.value / before.value
    return Figure(
        value=value,
        low=value * math.exp(-down),
        high=value * math.exp(up),
        samples=min(now.samples, before.samples),
    )
