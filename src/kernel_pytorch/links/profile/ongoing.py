"""Calls that are not over, and how long threads stand and wait for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .record import CallRecord

if TYPE_CHECKING:
    from .recorder import Recorder


class Ongoing:
    """A call of this rank."""

    __slots__ = ("backward", "left", "record", "recorder", "waiting")

    def __init__(self, recorder: Recorder, record: CallRecord) -> None:
        self.recorder, self.record = recorder, record
        self.waiting = 0
        """Threads that stand in ``wait``."""
        self.left = False
        """Whether its end is left for these threads to write."""
        self.backward: Backward | None = None

    def over(self) -> None:
        """Note that the call is over. May be called in any thread; writes nothing."""
        record = self.record
        if record.done is not None:
            return
        record.done = time.perf_counter()
        if self.backward is not None and self.backward.ended is not None:
            self.backward.stood_for(record)
        self.recorder.finished.append(self)

    def failed(self, error: str, *, may_wait: bool) -> None:
        """Note why the call failed. ``may_wait``: this thread may be held up."""
        first = self.record.error is None
        if first:
            self.record.error = error
        self.recorder.write_over(self.record)
        if first and self.recorder.on_failure is not None:
            self.recorder.on_failure(self.record, may_wait)

    def stood(self, since: float) -> None:
        """Note that a thread has stood in ``wait`` since then."""
        record = self.record
        until = time.perf_counter() if record.done is None else record.done
        record.waited += max(0.0, until - since)


class Backward:
    """A backward pass that ends with waiting for the futures of calls, which torch does in C++."""

    def __init__(self) -> None:
        self.ended: float | None = None
        """Since when nothing is left but to wait."""
        self.calls: list[tuple[Ongoing, Any]] = []
        """With their futures."""

    def over(self) -> None:
        """The thread has waited. The callbacks of futures run later: they need a lock that it holds."""
        for call, future in self.calls:
            if future.done():
                call.over()
        self.calls.clear()

    def stood_for(self, record: CallRecord) -> None:
        """Count what the thread stood for this call; several calls do not count the same moment twice."""
        assert self.ended is not None
        assert record.done is not None
        record.waited += max(0.0, record.done - max(self.ended, record.posted))
        self.ended = max(self.ended, record.done)
