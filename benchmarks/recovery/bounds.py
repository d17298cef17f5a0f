"""How sure a number of trials makes one."""

from __future__ import annotations

from math import comb


def lower_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """The one-sided lower bound of a share (Clopper and Pearson, 1934): 0 of no trials.

    The share at which as many successes, or more, have a probability of ``1 - confidence``.
    """
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_least(successes, trials, middle) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _at_least(successes: int, trials: int, share: float) -> float:
    return sum(
        comb(trials, count) * share**count * (1 - share) ** (trials - count)
        for count in range(successes, trials + 1)
    )
