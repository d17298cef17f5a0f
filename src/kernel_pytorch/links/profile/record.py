"""What a rank notes of its collectives: a file of JSON lines, a header first.

A call has a line when it is posted, and another one (:class:`OverRecord`) when it is over, so that the file
of a process that was killed shows what it was in. :func:`settled` joins the two.

Times are of the rank's own clock (``time.perf_counter``), in seconds, and compared with no other rank's.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

FORMAT, VERSION = "kernel-pytorch collectives", 1


class Header(msgspec.Struct, kw_only=True):
    """The first line of a rank's file."""

    format: str = FORMAT
    version: int = VERSION
    rank: int
    """In the job, as are all ranks below."""
    world_size: int
    host: str
    """Hostname."""
    boot_id: str | None
    network_namespace: str | None
    pid: int
    started_at: float
    """Seconds since 1970, of this host's clock."""
    started: float
    """The same moment on the clock of all other times."""
    restart: int = 0
    """How many times torchrun had restarted the ranks."""


class GroupRecord(msgspec.Struct, kw_only=True, tag="group"):
    """A process group that the rank is part of, before its first call."""

    name: str
    """The same on all of its ranks."""
    ranks: list[int]
    backend: str
    description: str = ""
    """As torch has it: mesh_dp, undefined and so on."""


class StepRecord(msgspec.Struct, kw_only=True, tag="step"):
    """A step of the job begins."""

    step: int
    """From 1 on; what comes before the first is step 0."""
    at: float


class CallRecord(msgspec.Struct, kw_only=True, omit_defaults=True, tag="call"):
    """A collective call of this rank, or a message to or from another one."""

    id: int = 0
    """From 0 on, of this rank's calls."""
    group: str
    number: int
    """From 0 on, of this rank's calls in the group."""
    operation: str
    """As torch calls it: all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, barrier, send ..."""
    reduce: str | None = None
    """sum, avg, max, min, product ...; None: the operation reduces nothing."""
    shape: list[int]
    """Of this rank's input (of a broadcast: of the tensor)."""
    dtype: str | None
    """As in float32; None: no tensor."""
    nbytes: int | None
    """Of the whole vector that the operation is about, as nccl-tests count it: of an all-gather the output,
    of a reduce-scatter the input; None: not known."""
    step: int
    site: str
    """file:line of the frame outside of torch and of this package that made the call; "" if there is none."""
    posted: float
    done: float | None
    """None: it was not over when the record was written."""
    waited: float
    """Seconds of ``done - posted`` that a thread of the rank stood in a call to wait for it."""
    error: str | None = None
    peer: int | None = None
    """The other rank of a send or recv; the root of a broadcast, reduce, gather or scatter."""


class OverRecord(msgspec.Struct, kw_only=True, omit_defaults=True, tag="over"):
    """A call is over, or has failed: the last fields of its :class:`CallRecord`."""

    id: int
    done: float | None
    waited: float
    error: str | None = None


class EndRecord(msgspec.Struct, kw_only=True, tag="end"):
    """The last line of a rank that was not killed."""

    at: float
    error: str | None = None
    """What the rank ended with; None: nothing."""


Record = GroupRecord | StepRecord | CallRecord | OverRecord | EndRecord


class RankRecords(msgspec.Struct, kw_only=True):
    """What a rank wrote down."""

    header: Header
    records: list[Record]
    notes: tuple[str, ...] = ()
    """What could not be read."""


def settled(records: Iterable[Record]) -> list[Record]:
    """The records of a rank without :class:`OverRecord`: what these say is in the calls."""
    found: list[Record] = []
    calls: dict[int, CallRecord] = {}
    for record in records:
        if isinstance(record, OverRecord):
            call = calls.get(record.id)
            if call is not None:  # else its line was left out
                call.done, call.waited, call.error = record.done, record.waited, record.error
            continue
        if isinstance(record, CallRecord):
            calls[record.id] = record
        found.append(record)
    return found


def rank_file(rank: int, restart: int = 0) -> str:
    """Name of a rank's file in the run folder."""
    return f"rank-{rank}.jsonl" if not restart else f"rank-{rank}.restart-{restart}.jsonl"
