"""Times of two calls in pairs, and whether one is faster. Imports torch.

What disturbs a machine disturbs both calls of a pair, and drift cancels where the order alternates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from .ratio import Ratio as Ratio
from .ratio import median_ratio as median_ratio
from .verdict import Timing as Timing
from .verdict import fading, slower
from .verdict import verdict as verdict

MIN_PAIRS = 3
LEAST_PAIRS, MOST_PAIRS = 11, 31
"""Of a trial."""
TRIAL_S = 3.0
"""What the pairs of a trial may take together, if there is as much time; the least are measured anyway."""
SAMPLE_S = 0.002
"""A sample repeats a call until it lasts as long, or the clock and the scheduler are seen in it."""
DRAWN_AT_ONCE = 16
"""Inputs that repeated calls hold in memory."""


def time_pairs(
    base: Callable[[Any], object],
    candidate: Callable[[Any], object],
    draw: Callable[[], Any],
    *,
    pairs: int | None = None,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> Timing:
    """Time two calls that should be warm, alternately.

    The number of pairs is fixed by the first calls, so that no lucky moment ends the measurement.

    Args:
        draw: makes the inputs of one call, outside the clock.
        pairs: None: 11 to 31, as many as 3 seconds allow.
        budget_s: seconds that there are.
        clock: in seconds.
        synchronize: waits for the device.
    """

    def seconds(call: Callable[[Any], object], repeats: int) -> float:
        spent = 0.0
        for done in range(0, repeats, DRAWN_AT_ONCE):
            inputs = [draw() for _ in range(min(DRAWN_AT_ONCE, repeats - done))]
            if synchronize is not None:
                synchronize()
            start = clock()
            for one in inputs:
                call(one)
            if synchronize is not None:
                synchronize()
            spent += clock() - start
        return spent / repeats

    began = clock()
    seconds(base, 1), seconds(candidate, 1)  # the first calls may be slower
    again = clock()
    later = seconds(base, 1), seconds(candidate, 1)
    drawing = max(clock() - again - sum(later), 0.0) / 2
    repeats = [max(1, math.ceil(SAMPLE_S / max(one, 1e-6))) for one in later]
    pair_s = sum(number * (one + drawing) for number, one in zip(repeats, later, strict=True))
    left = budget_s - (clock() - began)
    planned = planned_pairs(pair_s, left) if pairs is None else pairs
    if planned * pair_s > left:
        needed = clock() - began + planned * pair_s
        return Timing(
            pairs=(), stopped=f"too slow for the budget: {planned} pairs of calls need {needed:.3g} s"
        )
    measured: list[tuple[float, float]] = []
    for pair in range(planned):
        if pair % 2:
            second_s = seconds(candidate, repeats[1])
            measured.append((seconds(base, repeats[0]), second_s))
        else:
            measured.append((seconds(base, repeats[0]), seconds(candidate, repeats[1])))
        if len(measured) == MIN_PAIRS and (reason := slower(measured)):
            return Timing(pairs=tuple(measured), stopped=reason)
    return Timing(pairs=tuple(measured), stopped=fading(measured))


def planned_pairs(pair_s: float, budget_s: float) -> int:
    """How many pairs to measure: 11 to 31, an odd number, in at most 3 seconds if more than 11."""
    affordable = int(min(budget_s, TRIAL_S) / max(pair_s, 1e-9))
    return max(LEAST_PAIRS, min(MOST_PAIRS, (affordable - 1) | 1))


def interleave(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int,
    max_seconds: float,
    device: torch.device,
    tell: Callable[[str], object] = lambda message: None,
) -> tuple[list[float], list[float]]:
    """Seconds of each call of both, after one warm-up call each.

    The order alternates (first, second), (second, first), ... so that neither always runs in the wake of
    the other, and slow drift of the machine cancels. Stops early after ``max_seconds``, but not before
    3 pairs (or ``pairs``, if that is less).

    Args:
        tell: is told how long it will take.
    """

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    least = min(pairs, MIN_PAIRS)
    pair_seconds = seconds(first) + seconds(second)
    expected = max(least * pair_seconds, min(pairs * pair_seconds, max_seconds))
    tell(f"  up to {pairs} pairs, about {expected:.0f} s")
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for pair in range(pairs):
        if pair >= least and time.perf_counter() - start > max_seconds:
            break
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            times[which].append(seconds((first, second)[which]))
    return times
