"""A process group that notes its calls and hands them on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.autograd import Variable

from .calls import DESCRIPTIONS, positional
from .record import GroupRecord
from .recorder import Backward, GroupCalls, Ongoing, Recorder
from .world import describe, enter, new_name, second_group

if TYPE_CHECKING:
    from .check import Checker

_in_backward = torch._C._current_graph_task_id
"""-1 outside of a backward pass."""
_IN_SOURCE = re.compile(r"^\[\S+:\d+\] ")
_MESSAGES = ("send", "recv", "recv_anysource")


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
        if self._call.backward is None and _in_backward() != -1:
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


class RecordingGroup(dist.ProcessGroup):
    """Hands each call on to ``inner``, of which it has rank, size and backends.

    Torch calls the methods of :data:`.DESCRIPTIONS` from Python and, since it is a Python subclass, also from
    C++ (DDP, functional collectives). What is none of them goes straight to the backends.
    """

    def __init__(self, inner: dist.ProcessGroup, recorder: Recorder, calls: GroupCalls, name: str) -> None:
        self._store, backends = describe(inner)
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]  # of Python subclasses
        for device, kind, backend in backends:
            self._register_backend(device, kind, backend)
        self._set_default_backend(backends[0][1])
        if inner.bound_device_id is not None:
            self.bound_device_id = inner.bound_device_id
        self.inner, self.recorder, self.calls = inner, recorder, calls
        self.in_place = False
        """Whether it has taken the place of ``inner``."""
        self.checker: Checker | None = None
        self._name = name

    def getBackendName(self) -> str:  # noqa: N802  (torch's)
        return self.inner.name()

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    @property
    def plain(self) -> dist.ProcessGroup:
        """On which calls are not recorded; this one, if it has taken the place of that."""
        return self if self.in_place else self.inner

    def get_group_store(self) -> Store:
        return self._store

    def __repr__(self) -> str:
        return f"RecordingGroup({self._name!r})"


def _recorded(method: str) -> Callable[..., Any]:
    describe_call = DESCRIPTIONS[method]
    alone = method in _MESSAGES

    def call(self: RecordingGroup, *args: Any, **named: Any) -> Any:
        recorder = self.recorder
        what = describe_call(positional(args, named), named, self.inner.size())
        backward = _in_backward() != -1
        ongoing = recorder.post(self.calls, what, in_backward=backward)
        try:
            if self.checker is not None and not alone:
                self.checker.check(what, ongoing.record)
                ongoing.stood(ongoing.record.posted)
            work = getattr(self.inner, method)(*args, **named)
        except Exception as error:
            ongoing.failed(reason(error), may_wait=True)
            raise
        if work is None:  # while the backend gathers calls
            return None
        waits = not getattr(args[-1] if args else named.get("opts"), "asyncOp", True)
        on_cpu = all(tensor.is_cpu for tensor in what.tensors)
        return RecordedWork(work, ongoing, on_cpu=on_cpu, waits=waits)

    call.__name__ = method
    return call


for _name in DESCRIPTIONS:
    if hasattr(dist.ProcessGroup, _name):
        setattr(RecordingGroup, _name, _recorded(_name))


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
    task = _in_backward()
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


def recording(
    recorder: Recorder,
    process_group: dist.ProcessGroup | None = None,
    *,
    check: bool = False,
    in_place: bool = False,
    ranks: list[int] | None = None,
    timeout: Any = None,
) -> dist.ProcessGroup:
    """See :meth:`.Recorder.wrap`.

    Args:
        in_place: the new group takes the name of the given one, which torch forgets.
        ranks: of the group, if torch does not know them yet.
        timeout: of the calls with which ``check`` agrees; default: the group's.
    """
    inner = process_group or dist.group.WORLD
    if inner is None:
        raise RuntimeError("there is no process group: call torch.distributed.init_process_group first")
    if isinstance(inner, RecordingGroup):
        return inner
    if inner in recorder.wrapped:
        return recorder.wrapped[inner]
    if ranks is None:
        ranks = dist.get_process_group_ranks(inner)
    name = inner.group_name if in_place else new_name(f"{inner.group_name}/recorded")
    record = GroupRecord(
        name=inner.group_name, ranks=ranks, backend=inner.name(), description=inner.group_desc
    )
    world = dist.group.WORLD
    rank, size = (inner.rank(), inner.size()) if world is None else (world.rank(), world.size())
    group = RecordingGroup(inner, recorder, recorder.add_group(record, rank, size), name)
    enter(group, inner, name, in_place=in_place, ranks=ranks)
    group.in_place = in_place
    if check:
        from .check import Checker

        group.checker = Checker(second_group(group, f"{name}/check", ranks, timeout), ranks)
    if not in_place:  # else torch alone decides how long the group lives
        recorder.wrapped[inner] = group
    return group
