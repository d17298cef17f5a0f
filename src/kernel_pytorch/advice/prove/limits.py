"""How a trial ends: its deadline, and the reasons for which it is given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..analysis.places import raised
from ..facts import Verdict

MOST_CHARACTERS = 240


class NotKeptError(Exception):
    """A trial that ends before its change is kept."""

    def __init__(self, reason: str, verdict: Verdict = "reverted") -> None:
        super().__init__(reason)
        self.reason, self.verdict = reason, verdict


class OutOfTimeError(NotKeptError):
    """The deadline of a trial has passed, or what comes next cannot end before it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "out of time")


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """The time by which a trial must have ended."""

    at: float
    """By ``clock``; infinity: there is none."""
    clock: Callable[[], float]

    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return self.at - self.clock()

    def check(self, needed_s: float = 0.0, what: str = "") -> None:
        """Go on only if there is time for what comes next.

        Raises:
            OutOfTimeError: there is not.
        """
        left = self.left()
        if left <= 0:
            raise OutOfTimeError(f"its time ran out{what and f' before {what}'}")
        if needed_s > left:
            raise OutOfTimeError(f"{what} needs about {needed_s:.0f} s and {left:.0f} s are left")


def describe(error: BaseException) -> str:
    """An exception in one line that is not too long, with where it was raised."""
    text, _, place = raised(error).rpartition(" (")
    if not text or len(text) <= MOST_CHARACTERS:
        return raised(error)
    return f"{text[:MOST_CHARACTERS]}... ({place}"
