"""The machine and the job: what hardware there is, its condition, which devices work.

Names are loaded when they are first used. The folders have more: machine, watch, power, placement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy

__version__ = "0.2.0"  # of the distribution longnet-pytorch, and so of both packages

if TYPE_CHECKING:
    from .errors import KernelPytorchError as KernelPytorchError
    from .errors import Unavailable as Unavailable
    from .machine.live import Machine as Machine
    from .placement import PlacementRequest as PlacementRequest
    from .placement import place as place
    from .placement.jobs import JobDevices as JobDevices
    from .placement.launch_hints import launch_hints as launch_hints
    from .power.energy import EnergyMeter as EnergyMeter
    from .power.limits import PowerLimits as PowerLimits
    from .watch.cluster_view import ClusterView as ClusterView
    from .watch.health import HealthState as HealthState
    from .watch.health import Thresholds as Thresholds
    from .watch.health import assess as assess
    from .watch.node_watch import NodeWatch as NodeWatch
    from .watch.trace import TraceWriter as TraceWriter
    from .watch.trace import read_trace as read_trace

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "errors": ["KernelPytorchError", "Unavailable"],
        "machine.live": ["Machine"],
        "placement": ["PlacementRequest", "place"],
        "placement.jobs": ["JobDevices"],
        "placement.launch_hints": ["launch_hints"],
        "power.energy": ["EnergyMeter"],
        "power.limits": ["PowerLimits"],
        "watch.cluster_view": ["ClusterView"],
        "watch.health": ["HealthState", "Thresholds", "assess"],
        "watch.node_watch": ["NodeWatch"],
        "watch.trace": ["TraceWriter", "read_trace"],
    },
)
