"""A trace for Perfetto (https://ui.perfetto.dev) and Chrome: ranks as processes, waiting and moving apart.

The format is that of https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .clocks import Offset
from .join import Collective, Run, named, named_ranks
from .record import CallRecord

Event = dict[str, Any]


def trace(run: Run, offsets: Mapping[int, Offset]) -> dict[str, Any]:
    """The trace as JSON objects. Times are in microseconds from the first moment of any rank on.

    Args:
        offsets: of the ranks' clocks.
    """
    start = min(_moments(run, offsets), default=0.0)
    events: list[Event] = []
    for rank in run.headers:
        events += _Rank(run, rank, start + offsets[rank].seconds).events()
    errors = {f"rank {rank}": offset.error_s for rank, offset in offsets.items()}
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"clock_error_s": errors, "notes": list(run.notes)},
    }


def _moments(run: Run, offsets: Mapping[int, Offset]) -> Iterator[float]:
    for rank, steps in run.steps.items():
        yield from (at - offsets[rank].seconds for at in steps.values())
    for each in run.collectives:
        yield from (call.posted - offsets[rank].seconds for rank, call in each.calls.items())
    for rank, calls in run.point_to_point.items():
        yield from (call.posted - offsets[rank].seconds for call in calls)


class _Rank:
    """The events of one rank."""

    def __init__(self, run: Run, rank: int, start: float) -> None:
        self._run, self._rank, self._start = run, rank, start
        self._threads: dict[str, int] = {"steps": 0}
        self._free: dict[tuple[str, int], float] = {}
        """Until when a lane is taken."""
        known = [each.calls[rank] for each in run.collectives if rank in each.calls]
        known += run.point_to_point.get(rank, [])
        moments = [call.done or call.posted for call in known] + list(run.steps.get(rank, {}).values())
        self._end = max(moments, default=start)
        """The last moment that is known."""

    def events(self) -> list[Event]:
        header, run = self._run.headers[self._rank], self._run
        events = [
            self._named("process_name", f"rank {self._rank} ({header.host})"),
            {"ph": "M", "name": "process_sort_index", "pid": self._rank, "args": {"sort_index": self._rank}},
        ]
        steps = sorted(run.steps.get(self._rank, {}).items(), key=lambda item: item[1])
        ends = [at for _, at in steps[1:]] + [self._end]
        for (step, at), end in zip(steps, ends, strict=False):
            events.append(self._span("steps", 0, f"step {step}", "step", at, max(end, at)))
        for each in run.collectives:
            if self._rank in each.calls:
                events += self._collective(each)
        for call in run.point_to_point.get(self._rank, []):
            text = named(call.operation, call.nbytes)
            events.append(self._span("messages", None, text, "message", *self._ends(call), _arguments(call)))
        names = [self._named("thread_name", name, tid) for name, tid in self._threads.items()]
        return names + events

    def _collective(self, each: Collective) -> Iterator[Event]:
        call = each.calls[self._rank]
        thread = f"{each.group} ({named_ranks(each.ranks)})"
        posted, done = self._ends(call)
        text = named(call.operation, call.nbytes) + ("" if self._rank in each.begun else " (not done)")
        arguments = _arguments(call) | {
            "number": each.number,
            "moving_ms": None if each.moving_s is None else 1e3 * each.moving_s,
            "busbw_mb_s": None if each.busbw is None else each.busbw / 1e6,
        }
        whole = self._span(thread, None, text, each.first.operation, posted, done, arguments)
        yield whole
        begun, waiting = each.begun.get(self._rank), each.waiting_s(self._rank)
        if begun is not None and waiting is not None:
            moved = begun + waiting
            for name, a, b in (("queued", posted, begun), ("waiting", begun, moved), ("moving", moved, done)):
                if b > a:
                    yield self._span("", whole["tid"], name, name, a, b)

    def _ends(self, call: CallRecord) -> tuple[float, float]:
        return call.posted, max(self._end if call.done is None else call.done, call.posted)

    def _span(
        self,
        thread: str,
        tid: int | None,
        name: str,
        category: str,
        begin: float,
        end: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> Event:
        return {
            "ph": "X",
            "pid": self._rank,
            "tid": self._lane(thread, begin, end) if tid is None else tid,
            "name": name,
            "cat": category,
            "ts": 1e6 * (begin - self._start),
            "dur": 1e6 * (end - begin),
            "args": dict(arguments or {}),
        }

    def _lane(self, thread: str, begin: float, end: float) -> int:
        """A thread on which nothing else is at that time: spans that overlap must not share one."""
        lane = 0
        while self._free.get((thread, lane), begin) > begin:
            lane += 1
        self._free[thread, lane] = end
        name = thread + (f" #{lane + 1}" if lane else "")
        return self._threads.setdefault(name, len(self._threads))

    def _named(self, what: str, name: str, tid: int = 0) -> Event:
        return {"ph": "M", "name": what, "pid": self._rank, "tid": tid, "args": {"name": name}}


def _arguments(call: CallRecord) -> dict[str, Any]:
    """What is known of a call."""
    found = {
        "site": call.site or None,
        "step": call.step or None,
        "reduce": call.reduce,
        "shape": call.shape,
        "dtype": call.dtype,
        "bytes": call.nbytes,
        "stood_in_wait_ms": 1e3 * call.waited,
        "peer": call.peer,
        "error": call.error,
    }
    return {name: value for name, value in found.items() if value is not None}
