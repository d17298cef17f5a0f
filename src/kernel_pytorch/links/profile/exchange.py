"""All ranks' records on each rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ...groups import tell_all
from .record import RankRecords
from .recorder import Recorder

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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


def _unrecorded(group: ProcessGroup | None) -> ProcessGroup | None:
    """The group without its recording, if torch still knows it."""
    return getattr(group, "plain", group)
