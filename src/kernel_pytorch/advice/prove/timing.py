"""Times of two calls in pairs, and whether one is faster. Imports torch.

What disturbs a machine disturbs both calls of a pair, and drift cancels where the order alternates.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .ratio import Ratio as Ratio
from .ratio import median_ratio as median_ratio

MIN_PAIRS = 3
LEAST_PAIRS, MOST_PAIRS = 11, 31
"""Of a trial."""
TRIAL_S = 3.0
"""What the pairs of a trial may take together, if there is as much time; the least are measured anyway."""
SAMPLE_S = 0.002
"""A sample repeats a call until it lasts as long, or the clock and the scheduler are seen in it."""
DRAWN_AT_ONCE = 16
"""Inputs that repeated calls hold in memory."""
SLOWER = 2.0
"""A candidate so much slower in each of the first 3 pairs is not measured further."""
CONFIDENCE = 0.99
LEAST_GAIN = 1.03
"""What a change must gain to be worth its lines."""
FADED = 1.1
"""A gain of the first half of the pairs over that of the second at which it is looked at."""

Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a call of the base and of the candidate, in pairs."""

    pairs: Pairs
    """In the order measured; each the mean of the calls of a sample. Empty: there was no time for them."""
    first_call_s: tuple[float, float]
    """Of the very first call of both, which may compile."""
    stopped: str = ""
    """Why fewer pairs were measured than planned, or the candidate is not to be trusted; ""."""

    @property
    def ratio(self) -> Ratio:
        """Time of the base over that of the candidate, with its 99 % interval.

        Raises:
            ValueError: there are no pairs.
        """
        return median_ratio(*zip(*self.pairs, strict=True), confidence=CONFIDENCE)

    @property
    def gain(self) -> float | None:
        """The ratio of medians; None: there are no pairs."""
        return self.ratio.value if self.pairs else None

    @property
    def low(self) -> float | None:
        """Lower end of the 99 % interval."""
        return self.ratio.low if self.pairs else None

    @property
    def high(self) -> float | None:
        """Upper end of the 99 % interval."""
        return self.ratio.high if self.pairs else None


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
    first = seconds(base, 1), seconds(candidate, 1)
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
            pairs=(),
            first_call_s=first,
            stopped=f"too slow for the budget: {planned} pairs of calls need {needed:.3g} s",
        )
    measured: list[tuple[float, float]] = []
    for pair in range(planned):
        if pair % 2:
            second_s = seconds(candidate, repeats[1])
            measured.append((seconds(base, repeats[0]), second_s))
        else:
            measured.append((seconds(base, repeats[0]), seconds(candidate, repeats[1])))
        if len(measured) == MIN_PAIRS and all(new > SLOWER * old for old, new in measured):
            return Timing(pairs=tuple(measured), first_call_s=first, stopped=_slower(measured))
    return Timing(pairs=tuple(measured), first_call_s=first, stopped=fading(measured))


def planned_pairs(pair_s: float, budget_s: float) -> int:
    """How many pairs to measure: 11 to 31, an odd number, in at most 3 seconds if more than 11."""
    affordable = int(min(budget_s, TRIAL_S) / max(pair_s, 1e-9))
    return max(LEAST_PAIRS, min(MOST_PAIRS, (affordable - 1) | 1))


def _slower(pairs: list[tuple[float, float]]) -> str:
    factor = min(new / old for old, new in pairs)
    return f"slower: it takes at least {factor:.3g} times as long in each of the first {len(pairs)} pairs"


def fading(pairs: Sequence[tuple[float, float]]) -> str:
    """Why a gain is not believed: the first calls had it, and the later ones have less; "": it is."""
    early, late = _halves(pairs)
    if not early or _gain(early) <= max(LEAST_GAIN, FADED * _gain(late)):
        return ""
    first, then = (median_ratio(*zip(*half, strict=True), confidence=CONFIDENCE) for half in (early, late))
    if first.low <= then.high:
        return ""
    return (
        f"slower after its first calls: the gain falls from {first.value:.2f} in the first half of the pairs "
        f"to {then.value:.2f} in the second"
    )


def _halves(pairs: Sequence[tuple[float, float]]) -> tuple[Pairs, Pairs]:
    """The first and the last, without the middle one of an odd number."""
    half = len(pairs) // 2
    return tuple(pairs[:half]), tuple(pairs[len(pairs) - half :])


def _gain(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(old for old, _ in pairs) / statistics.median(new for _, new in pairs)


def verdict(timing: Timing, noise: float) -> tuple[bool, Ratio | None, str]:
    """Whether the candidate is kept, its gain, and why not.

    Args:
        noise: of the base: the ratio of medians of its odd calls and its even ones less 1, absolute.
    """
    if not timing.pairs:
        return False, None, timing.stopped
    ratio = timing.ratio
    least = min(map(_gain, filter(None, _halves(timing.pairs))), default=ratio.value)
    if timing.stopped:
        reason = timing.stopped
    elif ratio.low <= 1:
        reason = f"no gain is proved: {ratio.value:.2f}, and at least {ratio.low:.2f}"
    elif least <= 1:
        reason = f"no gain is proved: {ratio.value:.2f}, but {least:.2f} in one half of the pairs"
    elif ratio.value <= LEAST_GAIN:
        reason = f"a gain of {ratio.value:.3f} is not worth a change"
    elif ratio.value <= 1 + noise:
        reason = f"a gain of {ratio.value:.2f} is within the noise of {100 * noise:.0f} %"
    else:
        reason = ""
    return not reason, ratio, reason


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
