"""The ratio of two medians with its interval. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median time of one call over that of another, from interleaved pairs."""

    first_s: float
    """Median seconds of the numerator."""
    second_s: float
    """Median seconds of the denominator."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    pairs: int
    """Pairs measured."""

    @property
    def value(self) -> float:
        """The ratio of medians."""
        return self.first_s / self.second_s


def median_ratio(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """The ratio of medians with its percentile-bootstrap interval.

    Pairs are resampled whole (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13), since
    what disturbs the machine disturbs both calls of a pair. The resampling is seeded.

    Args:
        first: seconds of the numerator, in the order measured.
        second: seconds of the denominator, as many.
        confidence: probability with which the interval covers the true ratio.

    Raises:
        ValueError: there are no pairs, or the confidence is not between 0 and 1.
    """
    if not len(first) == len(second) > 0:
        raise ValueError(f"there must be as many first times as second ones, got {len(first)}, {len(second)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    times = np.array([first, second])
    pairs = times.shape[1]
    index = np.random.default_rng(0).integers(pairs, size=(RESAMPLES, pairs))
    numerator, denominator = np.median(times[:, index], axis=-1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(numerator / denominator, (tail, 1 - tail))
    first_s, second_s = np.median(times, axis=1)
    return Ratio(
        first_s=float(first_s), second_s=float(second_s), low=float(low), high=float(high), pairs=pairs
    )
