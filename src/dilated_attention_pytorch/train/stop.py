"""Ending a run in order: on Ctrl-C, SIGTERM and SIGUSR1."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGUSR1 is noted in ``received``.

    Slurm and torchrun both pass signals on, so that one request comes as several. A second SIGINT, which is
    somebody at a keyboard, ends the process.

    Args:
        quiet: say nothing about it.
    """

    received: signal.Signals | None = None

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def __enter__(self) -> StopRequest:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._handlers = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = self.received or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.quiet and (first or number == signal.SIGINT):
            again = "; once more quits at once" if number == signal.SIGINT else ""
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\nstopping after this step{again}\n".encode())
