"""A clock for readings that ignores changes of the system clock."""

from __future__ import annotations

import math
from collections import deque

_JUMP_S = 60.0
_JUMP_INTERVALS = 20
_REMEMBERED = 8


class SteadyClock:
    """Turns the time stamps of readings into seconds that never go back.

    A system clock may be set back or forward, and a machine may sleep. Nothing was observed meanwhile, so the
    reading after such a jump gets the time of the one before.

    A step forward is a jump if it is longer than a minute and than 20 times the longest of the last eight
    intervals. After the first reading and after a jump forward no interval is known, and any step is
    accepted: readings may be hours apart.
    """

    def __init__(self) -> None:
        self.skipped_s = 0.0
        """How far the time stamps are ahead of the steady seconds; negative if they are behind."""
        self._stamp_s: float | None = None
        self._steady_s = 0.0
        self._intervals_s: deque[float] = deque(maxlen=_REMEMBERED)

    def update(self, time_s: float) -> float:
        """Steady seconds of the next reading: its time stamp until the first jump."""
        if self._stamp_s is None:
            self._stamp_s = self._steady_s = time_s
        elapsed, self._stamp_s = time_s - self._stamp_s, time_s
        longest = max(self._intervals_s, default=math.inf)
        if 0 <= elapsed <= max(_JUMP_S, _JUMP_INTERVALS * longest):
            self._steady_s = max(self._steady_s, time_s - self.skipped_s)  # the difference is rounded
            if elapsed:
                self._intervals_s.append(elapsed)
        else:
            self.skipped_s = time_s - self._steady_s
            if elapsed > 0:
                self._intervals_s.clear()
        return self._steady_s
