"""What makes a job slow, wrong or hang, and because of whom."""

from __future__ import annotations

from collections.abc import Sequence

from ..facts import MeasuredLinks
from .faults import faults
from .finding import Finding
from .join import Run, join
from .late import waits_for_ranks
from .record import RankRecords
from .slow_links import slow_groups, slow_links

__all__ = ["Finding", "find", "findings"]


def findings(records: Sequence[RankRecords], links: MeasuredLinks | None = None) -> list[Finding]:
    """What the records of a job's ranks say, dearest first. See :func:`find`."""
    return find(join(records), links)


def find(run: Run, links: MeasuredLinks | None = None) -> list[Finding]:
    """What is wrong with a run, dearest first.

    Args:
        links: between all ranks, measured while nothing else used them. A slow link slows down all ranks
            alike, so that records alone do not name it.
    """
    found = [*faults(run), *waits_for_ranks(run), *slow_groups(run)]
    if links is not None and links.size == run.world_size:
        found += slow_links(run, links)
    return sorted(found, key=lambda finding: finding.order)
