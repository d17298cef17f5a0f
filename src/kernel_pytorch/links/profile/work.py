"""The handle of a recorded call."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Variable

from .ongoing import Backward, Ongoing

_IN_SOURCE = re.compile(r"^\[\S+:\d+\] ")
_current_task = torch._C._current_graph_task_id
"""-1 outside of a backward pass."""


def in_backward() -> bool:
    """Whether this thread is in a backward pass."""
    return bool(_current_task() != -1)


class RecordedWork(dist.Work):
    """The handle of a call; notes how long threads wait for it."""

    def __init__(self, inner: dist.Work, call: Ongoing, *, on_cpu: bool, waits: bool) -> None:
        """``waits``: the caller waits at once. Then no thread of the backend has to call Python."""
        super().__init__()
        self._inner, self._call = inner, call
        # A GPU's future is done, and its wait returns, when the call is enqueued: neither tells its end.
        self._ends_with_wait = on_cpu and waits
        if on_cpu and not waits:
            try:
                inner.get_future().add_done_callback(lambda future: _over(call, future))
            except RuntimeError:  # gloo's messages and its reduce_scatter have none
                self._ends_with_wait = True

    def wait(self, *args: Any, **named: Any) -> bool:
        call, since = self._call, time.perf_counter()
        call.waiting += 1
        try:
            done = self._inner.wait(*args, **named)
        except RuntimeError as error:
            call.stood(since)
            call.waiting -= 1
            call.failed(reason(error), may_wait=True)
            raise
        if self._ends_with_wait and call.record.done is None:
            call.over()
        call.stood(since)
        call.waiting -= 1
        call.recorder.write_finished()
        if call.left:
            call.recorder.write_over(call.record)
        return done

    def get_future(self) -> Any:
        """torch waits for futures in C++, unseen; those of a backward pass (DDP's) at its very end."""
        future = self._inner.get_future()
        if self._call.backward is None and in_backward():
            self._call.backward = _current_backward()
            self._call.backward.calls.append((self._call, future))
        return future


def _forward(name: str) -> Callable[..., Any]:
    def method(self: RecordedWork, *args: Any, **named: Any) -> Any:
        return getattr(self._inner, name)(*args, **named)

    method.__name__ = name
    return method


for _name in (
    "_get_duration",
    "_get_op_type",
    "_source_rank",
    "block_current_stream",
    "exception",
    "get_future_result",
    "is_completed",
    "is_success",
    "result",
    "source_rank",
    "synchronize",
):
    if hasattr(dist.Work, _name):
        setattr(RecordedWork, _name, _forward(_name))


def _over(call: Ongoing, future: Any) -> None:
    """In the thread of the backend, which waits until this returns."""
    try:
        future.value()
    except Exception as error:
        call.over()
        call.failed(reason(error), may_wait=False)
    else:
        call.over()


_backwards: dict[int, Backward] = {}


def _current_backward() -> Backward:
    """Of the pass that this thread is in."""
    task = _current_task()
    backward = _backwards.get(task)
    if backward is None:
        backward = _backwards[task] = Backward()

        def ended() -> None:
            # DDP has its own callback, which waits, run after this one: it adds it after its last call.
            del _backwards[task]
            backward.ended = time.perf_counter()
            add(backward.over)

        add = Variable._execution_engine.queue_callback
        add(ended)
    return backward


def reason(error: BaseException) -> str:
    """In one line, without where in gloo's source it was raised and what may have been the cause."""
    line = str(error).partition("\n")[0].partition(". This is typically caused")[0]
    return _IN_SOURCE.sub("", line) or type(error).__name__
