"""What a rank notes of its collectives: a header, then a line for each call.

Times are of the rank's own clock (``time.perf_counter``), in seconds, and compared with no other rank's.
"""

from __future__ import annotations

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


class GroupRecord(msgspec.Struct, kw_only=True, tag="group"):
    """A process group that the rank is part of, before its first call."""

    name: str
    """The same on all of its ranks."""
    ranks: list[int]
    backend: str


class StepRecord(msgspec.Struct, kw_only=True, tag="step"):
    """A step of the job begins."""

    step: int
    """From 1 on; what comes before the first is step 0."""
    at: float


class CallRecord(msgspec.Struct, kw_only=True, tag="call"):
    """A collective call of this rank, written when it is over, failed, or given up."""

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


Record = GroupRecord | StepRecord | CallRecord
