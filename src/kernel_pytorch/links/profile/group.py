"""A process group that notes its calls and hands them on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from .calls import DESCRIPTIONS, positional
from .check import Checker, Intent
from .record import GroupRecord
from .recorder import GroupCalls, Recorder
from .work import RecordedWork, in_backward, reason
from .world import describe, enter, new_name, second_group

_MESSAGES = ("send", "recv", "recv_anysource")


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

    def agreement(
        self, operation: str, reduce: str | None, dtype: str, sizes: list[int]
    ) -> Callable[[], None] | None:
        """What agrees on a call that is made of messages, to be called before; None: calls are not checked.

        Messages alone tell nothing of the call that they are part of.
        """
        if self.checker is None:
            return None
        step, site = self.recorder.here()
        intent = Intent(
            operation=operation,
            reduce=reduce,
            dtype=dtype,
            sizes=sizes,
            root=None,
            number=0,
            step=step,
            site=site,
        )
        return partial(self.checker.agree, intent)

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
        ongoing = recorder.post(self.calls, what, in_backward=in_backward())
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
        group.checker = Checker(second_group(group, f"{name}/check", ranks, timeout), ranks)
    if not in_place:  # else torch alone decides how long the group lives
        recorder.wrapped[inner] = group
    return group
