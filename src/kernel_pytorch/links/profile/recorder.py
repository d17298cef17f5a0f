"""What this process notes of its calls: in memory, and in a file of the run folder."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ...machine.files import Files
from .calls import What
from .ongoing import Ongoing
from .record import (
    CallRecord,
    EndRecord,
    GroupRecord,
    Header,
    OverRecord,
    RankRecords,
    Record,
    StepRecord,
    rank_file,
)
from .sites import Sites

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_DTYPES: dict[object, str] = {}


class GroupCalls:
    """The numbers of this rank's calls in a group."""

    def __init__(self, record: GroupRecord) -> None:
        self.record = record
        self.numbers = count()


class Recorder:
    """Notes the calls of this process on the groups that it wraps.

    Args:
        folder: of the run, made if missing, for a file of each rank; None: in memory only.
        keep: calls, and steps, that are kept in memory; older ones are forgotten, but stay in the file.
    """

    def __init__(self, folder: str | Path | None = None, *, keep: int = 100_000) -> None:
        self.folder = None if folder is None else Path(folder)
        self.header: Header | None = None
        self.groups: list[GroupRecord] = []
        self.steps: deque[StepRecord] = deque(maxlen=keep)
        self.calls: deque[CallRecord] = deque(maxlen=keep)
        self.finished: deque[Ongoing] = deque()
        """Calls whose end has not been written."""
        self.on_failure: Callable[[CallRecord, bool], None] | None = None
        """Called when a call has failed, with whether the caller may be held up."""
        self.wrapped: dict[Any, ProcessGroup] = {}
        self._sites: Sites | None = None
        self._ids = count()
        self._step = 0
        self._file: int | None = None
        self._encoder = msgspec.json.Encoder()

    def wrap(self, process_group: ProcessGroup | None = None, *, check: bool = False) -> ProcessGroup:
        """A group of the same ranks, on the same connections, whose calls are noted. The given one's are not.

        Args:
            process_group: default: all ranks.
            check: agree on each call before it is made (see :mod:`.check`). All ranks of the group call this.
        """
        from .group import recording

        return recording(self, process_group, check=check)

    def step(self) -> None:
        """Note that a step of the job begins."""
        self._step += 1
        record = StepRecord(step=self._step, at=time.perf_counter())
        self.steps.append(record)
        self.write_finished()
        self._write(record)

    def here(self) -> tuple[int, str]:
        """The number of the step, and the line of the user's program on which this thread stands."""
        assert self._sites is not None
        return self._step, self._sites.here()

    @property
    def records(self) -> RankRecords:
        """What is in memory.

        Raises:
            RuntimeError: no group has been wrapped yet.
        """
        if self.header is None:
            raise RuntimeError("nothing is recorded: wrap a process group first")
        return RankRecords(header=self.header, records=[*self.groups, *self.steps, *self.calls])

    def add_group(self, record: GroupRecord, rank: int, world_size: int) -> GroupCalls:
        """A group whose calls are to be noted. ``rank`` and ``world_size`` are of the job."""
        if self.header is None:
            self._begin(rank, world_size)
        self.groups.append(record)
        self._write(record)
        return GroupCalls(record)

    def post(self, group: GroupCalls, what: What, *, in_backward: bool) -> Ongoing:
        """A call that is about to be posted."""
        assert self._sites is not None
        if self.finished:
            self.write_finished()
        tensors = what.tensors
        peer = what.peer
        if peer is not None and peer < len(group.record.ranks):
            peer = group.record.ranks[peer]
        record = CallRecord(
            id=next(self._ids),
            group=group.record.name,
            number=next(group.numbers),
            operation=what.operation,
            reduce=what.reduce,
            shape=list(tensors[0].shape) if len(tensors) == 1 else [sum(t.numel() for t in tensors)],
            dtype=_dtype(tensors[0].dtype) if tensors else None,
            nbytes=what.nbytes,
            step=self._step,
            # A GPU's autograd thread has no frames but torch's: the main thread stands in backward().
            site=self._sites.here() or (self._sites.of_main_thread() if in_backward else ""),
            posted=time.perf_counter(),
            done=None,
            waited=0.0,
            peer=peer,
        )
        if not tensors:
            record.shape = []
        self.calls.append(record)
        self._write(record)
        return Ongoing(self, record)

    def write_finished(self) -> None:
        """Write the ends of calls; those that a thread waits for are left to it."""
        finished = self.finished
        while finished:
            try:
                call = finished.popleft()
            except IndexError:  # another thread was faster
                return
            call.left = call.waiting > 0
            if not call.waiting:  # now, if not before
                self.write_over(call.record)

    def write_over(self, record: CallRecord) -> None:
        self._write(OverRecord(id=record.id, done=record.done, waited=record.waited, error=record.error))

    def close(self, error: str | None = None) -> None:
        """Write what is left, and that the rank has ended; with ``error``, if it has failed."""
        self.write_finished()
        self._write(EndRecord(at=time.perf_counter(), error=error))
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _begin(self, rank: int, world_size: int) -> None:
        files = Files()
        self._sites = Sites()
        self.header = Header(
            rank=rank,
            world_size=world_size,
            host=socket.gethostname(),
            boot_id=files.text("proc/sys/kernel/random/boot_id"),
            network_namespace=files.link_name("proc/self/ns/net"),
            pid=os.getpid(),
            started_at=time.time(),
            started=time.perf_counter(),
            restart=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / rank_file(rank, self.header.restart)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        self._write(self.header)

    def _write(self, record: Record | Header) -> None:
        """One line in one system call: whole, in the file, whatever happens to this process."""
        if self._file is None:
            return
        try:
            os.write(self._file, self._encoder.encode(record) + b"\n")
        except OSError as error:  # a full disk must not end the job
            file, self._file = self._file, None
            os.close(file)
            print(
                f"kernel-pytorch profile: {self.folder}: {error.strerror}: no more records", file=sys.stderr
            )


def _dtype(dtype: object) -> str:
    name = _DTYPES.get(dtype)
    if name is None:
        name = _DTYPES[dtype] = str(dtype).removeprefix("torch.")
    return name
