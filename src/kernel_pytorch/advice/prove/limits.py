"""How a trial ends: its deadline, and the reasons for which it is given up."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """An exception in one line: its class, what it says, and where it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if len(text) > MOST_CHARACTERS:
        text = text[: MOST_CHARACTERS - 3] + "..."
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return text + place
