"""The links between the ranks of a process group: measured, then chosen. Names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .collectives.collectives import Collectives as Collectives
    from .compress.hooks import register_comm_hook as register_comm_hook
    from .cost import expected_time as expected_time
    from .measure import measure_links as measure_links
    from .order import RankOrder as RankOrder
    from .order import rank_order as rank_order
    from .profile.findings import findings as findings
    from .profile.recorder import Recorder as Recorder
    from .saved import measure_or_saved as measure_or_saved
    from .schedule.queue import CollectiveQueue as CollectiveQueue

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "collectives.collectives": ["Collectives"],
        "compress.hooks": ["register_comm_hook"],
        "cost": ["expected_time"],
        "measure": ["measure_links"],
        "order": ["RankOrder", "rank_order"],
        "profile.findings": ["findings"],
        "profile.recorder": ["Recorder"],
        "saved": ["measure_or_saved"],
        "schedule.queue": ["CollectiveQueue"],
    },
)
