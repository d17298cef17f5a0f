"""Which pattern is the fastest, from the times of real calls. Pure: without torch, without a clock.

A chooser is of one operation, dtype and size. All ranks make the same calls; each tells its own times, and
the slowest rank's are agreed on while the next calls go on. So all ranks choose alike, and at the same call.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .methods import CommunicationPattern

NEAR = 1.25
"""Patterns that are expected to take this much more than the best are tried. Of times, a change."""
TURNS, MOST_TURNS = 3, 7
"""How often each is tried: more often where medians are not :data:`NEAR` the shortest calls. Those whose
shortest call is not near the best median have no other turn; of the others the median decides, for the times
of some patterns spread more than those of others."""
FAR = 1.5
"""In place of :data:`NEAR` in the turns before the last of :data:`TURNS`, for a call or two tell little; and
of medians from then on."""
COMPARED_EVERY = 64
"""Calls."""
LAG = 3
"""Calls between those whose times are agreed on and that which is chosen from them."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a call does, and why."""

    pattern: CommunicationPattern
    reason: str


class Chooser:
    """For each call: :attr:`due` and then :meth:`agreed`, :meth:`next`, the call, :meth:`took`."""

    def __init__(self, expected_s: Mapping[CommunicationPattern, float | None]) -> None:
        """``expected_s``: seconds that each pattern is expected to take, the same on all ranks; if not
        known, the most promising first.

        Raises:
            ValueError: no patterns.
        """
        if not expected_s:
            raise ValueError("there must be a pattern to choose")
        self._all = tuple(expected_s)
        self._calls = 0
        self._due: int | None = None
        self._candidates: list[CommunicationPattern] = []
        self._plan: list[CommunicationPattern] = []
        """Those that the next calls try."""
        self._turn = 0
        self._times: dict[CommunicationPattern, list[float]] = {}
        """Of this rank, of those that are tried."""
        self._chosen: CommunicationPattern | None = None
        self._why = ""
        self._recent: list[float] = []
        """Seconds of calls of the chosen one."""
        self._before_s: float | None = None
        """Agreed, of the chosen one."""
        self._second_s: float | None = None
        """Agreed, of the best of the others, when it was chosen."""
        known = [seconds for seconds in expected_s.values() if seconds is not None]
        if len(known) < len(expected_s):
            self._try(self._all, "what they take is not known")
        else:
            near = [p for p in self._all if (expected_s[p] or 0.0) <= NEAR * min(known)]
            self._try(sorted(near, key=lambda p: expected_s[p] or 0.0), f"expected within {NEAR} of the best")
        if len(self._candidates) == 1:
            self._choose(self._candidates[0], f"all others are expected to take {NEAR} times as long")

    @property
    def due(self) -> bool:
        """Whether :meth:`agreed` must be called before the next call."""
        return self._due is not None and self._calls >= self._due

    def next(self) -> Choice:
        """What the next call does."""
        if self._chosen is not None:
            return Choice(pattern=self._chosen, reason=self._why)
        if self._plan:
            return Choice(pattern=self._plan[0], reason=f"tried: {self._why}")
        return Choice(pattern=self._candidates[0], reason="the best so far, until the times are agreed on")

    def took(self, seconds: float) -> list[float] | None:
        """Tell what the call took on this rank.

        Returns:
            What to agree on, if it is time to: the largest value of each position over all ranks.
        """
        pattern = self.next().pattern
        self._calls += 1
        if self._chosen is not None:
            self._recent.append(seconds)
            if len(self._recent) < COMPARED_EVERY or self._due is not None:
                return None
            self._due = self._calls + LAG
            recent, self._recent = self._recent, []
            return [statistics.median(recent)]
        self._times.setdefault(pattern, []).append(seconds)
        if not self._plan:
            return None
        self._plan.pop(0)
        if self._plan:
            return None
        self._due = self._calls + LAG
        tried = [self._times[candidate] for candidate in self._candidates]
        return [*map(statistics.median, tried), *map(min, tried)]

    def agreed(self, slowest: Sequence[float]) -> None:
        """Take up what the ranks agreed on."""
        self._due = None
        if self._chosen is not None:
            self._compare(slowest[0])
            return
        count = len(self._candidates)
        times = dict(zip(self._candidates, slowest[:count], strict=True))
        shortest = dict(zip(self._candidates, slowest[count:], strict=True))
        ranking = sorted(times, key=lambda pattern: times[pattern])
        self._turn += 1
        best_s, near = times[ranking[0]], FAR if self._turn < TURNS else NEAR
        self._candidates = [
            each
            for each in ranking
            if shortest[each] <= near * best_s and (self._turn < TURNS or times[each] <= FAR * best_s)
        ]
        steady = all(times[each] <= NEAR * shortest[each] for each in self._candidates)
        if self._turn < (TURNS if steady else MOST_TURNS) and len(self._candidates) > 1:
            self._plan = list(self._candidates)
            return
        told = ", ".join(f"{pattern.value} {times[pattern] * 1e3:.3g} ms" for pattern in ranking)
        self._choose(ranking[0], f"the fastest of those tried, by the slowest rank: {told}")
        self._second_s = min((times[pattern] for pattern in ranking[1:]), default=None)

    def _compare(self, median_s: float) -> None:
        before_s, self._before_s = self._before_s, self._before_s or median_s
        if before_s is None:  # what was chosen from a few calls may not hold
            before_s = self._second_s
            changed = before_s is not None and median_s > NEAR * before_s
        else:
            changed = not before_s / NEAR <= median_s <= before_s * NEAR
        if changed and before_s is not None and self._chosen is not None and len(self._all) > 1:
            others = [pattern for pattern in self._all if pattern is not self._chosen]
            self._try(
                [self._chosen, *others],
                f"{self._chosen.value} takes {median_s * 1e3:.3g} ms, after {before_s * 1e3:.3g} ms",
            )

    def _try(self, candidates: Sequence[CommunicationPattern], why: str) -> None:
        self._candidates, self._plan = list(candidates), list(candidates)
        self._times, self._turn = {}, 0
        self._chosen, self._why = None, why

    def _choose(self, pattern: CommunicationPattern, why: str) -> None:
        self._chosen, self._why = pattern, why
        self._before_s = self._second_s = None
        self._recent = []
