"""Discovery of the hardware of this machine, or of all machines of a process group."""

from __future__ import annotations

from collections.abc import Sequence

from ..machine.facts import (
    ClusterTopology,
    DeviceCapability,
    DeviceInfo,
    HardwareVendor,
    NodeTopology,
    RankPlace,
    ThermalState,
)
from ..placement import PlacementRequest, place
from ..watch.cluster_view import ClusterView
from ..watch.telemetry import Source, Telemetry

__all__ = [
    "ClusterTopology",
    "DeviceCapability",
    "DeviceInfo",
    "HardwareTopologyManager",
    "HardwareVendor",
    "NodeTopology",
    "RankPlace",
    "ThermalState",
    "create_hardware_manager",
]


class HardwareTopologyManager:
    """The topology, with the telemetry and the health of this node: a :class:`.ClusterView`.

    Args:
        enable_monitoring: take a reading each second on a thread; if not, each query takes one.
        topology, source: as of :class:`.ClusterView`.

    Raises:
        ValueError: only one of topology and source is given.
    """

    def __init__(
        self,
        enable_monitoring: bool = True,
        *,
        topology: ClusterTopology | None = None,
        source: Source | None = None,
    ) -> None:
        self.view = ClusterView(topology, source)
        if enable_monitoring:
            self.view.watch.start(self)

    @property
    def cluster_topology(self) -> ClusterTopology:
        return self.view.topology

    @property
    def telemetry(self) -> Telemetry:
        """Telemetry of this node. Its device ids are those in the node, from 0."""
        return self.view.watch.telemetry

    def discover_topology(self) -> ClusterTopology:
        """See :meth:`.ClusterView.discover`."""
        return self.view.discover()

    def get_optimal_device_placement(
        self, num_devices: int, memory_requirements: Sequence[float] | None = None
    ) -> list[int]:
        """Ids of devices with the fastest links between them, none of them failed: :func:`.placement.place`.

        Args:
            num_devices: how many.
            memory_requirements: GB that each needs.

        Raises:
            ValueError: there are too few; the message says why the others were left out.
        """
        memory_gb = 0.0 if memory_requirements is None else tuple(memory_requirements)
        request = PlacementRequest(num_devices=num_devices, memory_gb=memory_gb)
        return list(place(self.cluster_topology, request, self.view.states()).device_ids)

    def shutdown(self) -> None:
        """Stop the thread and close the drivers. May be called again."""
        self.view.close()


def create_hardware_manager(enable_monitoring: bool = True) -> HardwareTopologyManager:
    """A manager of this machine."""
    return HardwareTopologyManager(enable_monitoring)
