"""Ending a run in order on Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is noted in ``received``; a second one ends the process.

    Args:
        quiet: say nothing about it.
    """

    received: signal.Signals | None = None

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def __enter__(self) -> StopRequest:
        self._handlers = {
            number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each in self._handlers:
            signal.signal(each, signal.SIG_DFL)
        if not self.quiet:
            # Not print: the signal may have come in the middle of one.
            os.write(2, b"\nstopping after this step; once more quits at once\n")
