"""What timed pairs say: whether a candidate is faster. Pure, without torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .ratio import Ratio, median_ratio

SLOWER = 2.0
"""A candidate so much slower in each of the first 3 pairs is not measured further."""
CONFIDENCE = 0.99
LEAST_GAIN = 1.03
"""What a change must gain to be worth its lines."""
FADED = 1.1
"""A gain of the first half of the pairs over that of the second at which their intervals are compared."""
LEAST_HALF = 3
"""Pairs that make a half."""

Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a call of the base and of the candidate, in pairs."""

    pairs: Pairs
    """In the order measured; each the mean of the calls of a sample. Empty: there was no time for them."""
    stopped: str = ""
    """Why fewer pairs were measured than planned, or the candidate is not to be trusted; ""."""

    @property
    def ratio(self) -> Ratio:
        """Time of the base over that of the candidate, with its 99 % interval.

        Raises:
            ValueError: there are no pairs; so too of the other properties.
        """
        first, second = zip(*self.pairs, strict=True) if self.pairs else ((), ())
        return median_ratio(first, second, confidence=CONFIDENCE)

    @property
    def gain(self) -> float:
        """The ratio of medians."""
        return self.ratio.value

    @property
    def low(self) -> float:
        """Lower end of the 99 % interval."""
        return self.ratio.low

    @property
    def high(self) -> float:
        """Upper end of the 99 % interval."""
        return self.ratio.high


def slower(pairs: Sequence[tuple[float, float]]) -> str:
    """Why a measurement that has begun is not worth its time; "": it is."""
    factor = min(new / old for old, new in pairs)
    if factor <= SLOWER:
        return ""
    return f"slower: it takes at least {factor:.3g} times as long in each of the first {len(pairs)} pairs"


def fading(pairs: Sequence[tuple[float, float]]) -> str:
    """Why a gain is not believed: the first calls had it, and the later ones have less; "": it is."""
    halves = _halves(pairs)
    if not halves:
        return ""
    early, late = halves
    fall = _gain(early) / _gain(late)
    if _gain(early) <= LEAST_GAIN or fall <= FADED:
        return ""
    before, after = (statistics.median(new for _, new in half) for half in halves)
    if after / before < math.sqrt(fall):  # it is rather the base that became faster
        return ""
    first, then = (median_ratio(*zip(*half, strict=True), confidence=CONFIDENCE) for half in (early, late))
    if first.low <= then.high:
        return ""
    return (
        f"slower after its first calls: the gain falls from {first.value:.2f} in the first half of the pairs "
        f"to {then.value:.2f} in the second"
    )


def _halves(pairs: Sequence[tuple[float, float]]) -> list[Pairs]:
    """The first and the last, without the middle one of an odd number; none of fewer than 6 pairs."""
    half = len(pairs) // 2
    return [tuple(pairs[:half]), tuple(pairs[-half:])] if half >= LEAST_HALF else []


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
    least = min(_gain(half) for half in _halves(timing.pairs) or [timing.pairs])
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
