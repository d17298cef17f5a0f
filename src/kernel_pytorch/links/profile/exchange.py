"""All ranks' records on each rank, and what their clocks show at the same moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from ...groups import tell_all
from .record import RankRecords
from .recorder import Recorder

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ROUND_TRIPS = 10


Trip = tuple[float, float, float]
"""Sent and received, on the clock of rank 0 of the group; in between, answered, on the other rank's clock."""


def collect(recorder: Recorder, process_group: ProcessGroup | None = None) -> list[RankRecords]:
    """The records of all ranks, by rank in the group. They all call this.

    Args:
        recorder: of this rank.
        process_group: on which nothing else is sent meanwhile; a group that notes its calls would note this
            too. Default: all ranks.

    Raises:
        GroupError: a rank has recorded nothing, or has failed, or did not answer within the group's timeout.
    """
    answers = tell_all(
        lambda: msgspec.json.encode(recorder.records), _unrecorded(process_group), what="tell its records"
    )
    return [msgspec.json.decode(answer, type=RankRecords) for answer in answers]


def round_trips(process_group: ProcessGroup | None = None) -> dict[int, list[Trip]]:
    """What the clocks (``time.perf_counter``) of the ranks show, by rank but 0. All ranks call this.

    Args:
        process_group: as for :func:`collect`.

    Raises:
        GroupError: a rank failed, or did not answer within the group's timeout.
    """
    import torch.distributed as dist

    group = _unrecorded(process_group) or dist.group.WORLD
    assert group is not None
    rank = dist.get_rank(group)
    trips = {
        other: _trips(group, rank, other)
        for other in range(1, dist.get_world_size(group))
        if rank in (0, other)
    }
    told = tell_all(lambda: msgspec.json.encode(trips), group, what="tell what its clock shows")
    return msgspec.json.decode(told[0], type=dict[int, list[Trip]])


def _trips(group: ProcessGroup, rank: int, other: int) -> list[Trip]:
    """On rank 0; on the other rank nothing of use."""
    import torch

    from ...groups import Pending

    peer = other if rank == 0 else 0
    trips = []
    for _ in range(_ROUND_TRIPS):
        mine, theirs = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        sent = time.perf_counter()
        if rank == 0:
            Pending(group, [(peer, mine)], []).wait()
            Pending(group, [], [(peer, theirs)]).wait()
        else:
            Pending(group, [], [(peer, theirs)]).wait()
            mine[0] = time.perf_counter()
            Pending(group, [(peer, mine)], []).wait()
        trips.append((sent, float(theirs), time.perf_counter()))
    return trips


def _unrecorded(group: ProcessGroup | None) -> ProcessGroup | None:
    """The group without its recording, if torch still knows it."""
    return getattr(group, "plain", group)
