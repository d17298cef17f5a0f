"""State kept between readings: how long a condition has held, how much a counter grew."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Truths = NDArray[np.bool_]
MINUTE_S, HOUR_S = 60.0, 3600.0


class Sustained:
    """How long a condition has held for each of ``count`` devices, from reading to reading.

    Unknown readings neither extend nor end it.
    """

    def __init__(self, count: int) -> None:
        self.seconds: Numbers = np.zeros(count)
        self.since_s: Numbers = np.full(count, np.nan)
        """When it began; NaN where it does not hold."""
        self.seen: Truths = np.zeros(count, dtype=bool)
        """Whether it was ever known."""
        self._before: Truths = np.zeros(count, dtype=bool)
        self._time_s = np.nan

    def update(self, now: float, holds: Truths, known: Truths) -> None:
        """``now``: seconds, not less than before; ``holds`` is ignored where not ``known``."""
        holds = holds & known
        over = known & ~holds
        self.seconds = np.where(holds & self._before, self.seconds + (now - self._time_s), self.seconds)
        self.seconds[over] = 0.0
        self.since_s = np.where(holds & np.isnan(self.since_s), now, self.since_s)
        self.since_s[over] = np.nan
        self.seen = self.seen | known
        self._before, self._time_s = holds, now

    @property
    def holds(self) -> Truths:
        """Whether it held when it was last known."""
        return ~np.isnan(self.since_s)

    def reset(self, index: int) -> None:
        self.seconds[index], self.since_s[index], self._before[index] = 0.0, np.nan, False


class Increases:
    """How much counters of ``count`` devices grew in the last ``window_s`` seconds, and since a baseline.

    A counter that is lower than before was reset to zero (a driver reload, a reboot) and has grown by its
    value since. Unknown values are skipped. The window is accurate to 1/60 of its length and one reading.
    With ``from_zero`` the first value counts as growth.
    """

    _PARTS = 60

    def __init__(self, count: int, window_s: float, *, from_zero: bool = False) -> None:
        self.window_s = window_s
        self._from_zero = from_zero
        self.total: Numbers = np.zeros(count)
        self._last: Numbers = np.full(count, np.nan)
        self._baseline: Numbers = np.zeros(count)
        self._marks: deque[tuple[float, Numbers]] = deque()

    def update(self, now: float, values: Numbers) -> None:
        """``now``: seconds, not less than before; ``values``: NaN where unknown."""
        known = ~np.isnan(values)
        grown = np.where(values >= self._last, values - self._last, values)
        self.total = self.total + np.where(known & (self.known | self._from_zero), grown, 0.0)
        self._last = np.where(known, values, self._last)
        if not self._marks or now - self._marks[-1][0] >= self.window_s / self._PARTS:
            self._marks.append((now, self.total.copy()))
        while len(self._marks) > 1 and self._marks[1][0] <= now - self.window_s:
            self._marks.popleft()

    @property
    def known(self) -> Truths:
        """Whether the counter was ever read."""
        return ~np.isnan(self._last)

    def in_window(self) -> Numbers:
        return self.total - self._marks[0][1] if self._marks else np.zeros_like(self.total)

    def since_baseline(self) -> Numbers:
        return self.total - self._baseline

    def reset(self, index: int) -> None:
        """Forget the growth so far."""
        self._baseline[index] = self.total[index]
        for _, total in self._marks:
            total[index] = self.total[index]
