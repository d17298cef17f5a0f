"""What hardware there is: on this machine, or on all machines of a process group."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ..machine.facts import (
    ClusterTopology,
    DeviceCapability,
    DeviceInfo,
    HardwareVendor,
    NodeTopology,
    RankPlace,
    ThermalState,
)
from ..machine.gather import gather_topology
from ..machine.live import Machine
from ..placement import PlacementRequest, place
from ..placement.request import Health
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
    """The topology, and the telemetry of the devices of this node.

    It begins with this node alone; :meth:`discover_topology` gathers the others.

    Args:
        enable_monitoring: take a reading each second on a thread; else when ``telemetry.sample()`` is called.
        topology: instead of this machine's.
        source: of readings of the devices of ``topology``, instead of this machine.

    Raises:
        ValueError: a topology without its source, or the reverse.
    """

    def __init__(
        self,
        enable_monitoring: bool = True,
        *,
        topology: ClusterTopology | None = None,
        source: Source | None = None,
    ) -> None:
        self.enable_monitoring = enable_monitoring
        self._machine: Machine | None = None
        if topology is None and source is None:
            self._machine = source = Machine()
            topology = ClusterTopology(nodes={0: self._machine.node})
        if topology is None or source is None:
            raise ValueError("topology and source go together: give both, or neither to read this machine")
        self._source: Source = source
        self.health: Callable[[], Health] = dict
        """What is known of the devices' health, by id. A health monitor that watches this manager tells."""
        self.cluster_topology = topology
        self.telemetry = Telemetry(source, [device.device_id for device in topology.devices])
        if enable_monitoring:
            self.telemetry.start()

    def discover_topology(self) -> ClusterTopology:
        """Read this machine anew and, where torch.distributed runs, gather those of all ranks.

        All ranks must then call it, and if one cannot read its machine all raise. It numbers the devices of
        all nodes, so that ids may change; the history starts anew if they do. A manager of a given topology
        keeps that.
        """
        if self._machine is None:
            return self.cluster_topology
        torch = sys.modules.get("torch")  # a process group can only be there if torch is
        if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            node = self._machine.refresh()
            self.cluster_topology = ClusterTopology(nodes={0: node})
            self._watch(node)
            return self.cluster_topology
        self.cluster_topology = gather_topology(self._machine.refresh)
        own = self.cluster_topology.ranks[torch.distributed.get_rank()]
        self._watch(self.cluster_topology.nodes[own.node_id])
        return self.cluster_topology

    def _watch(self, node: NodeTopology) -> None:
        """Let the telemetry have the ids of the devices of this node."""
        assert self._machine is not None
        ids = tuple(device.device_id for device in node.devices)
        before = self.telemetry
        if ids == before.history.device_ids:
            return
        was_running = before.running
        before.stop()
        self._machine.number_from(ids[0])
        self.telemetry = Telemetry(self._source, ids, interval_s=before.interval_s)
        self.telemetry.listeners = before.listeners
        if was_running:
            self.telemetry.start()

    def get_optimal_device_placement(
        self, num_devices: int, memory_requirements: Sequence[float] | None = None
    ) -> list[int]:
        """Ids of the devices with the fastest links between them, in the order of :func:`.placement.place`.

        None that a health monitor of this manager calls failed.

        Args:
            num_devices: how many.
            memory_requirements: GB that each needs.

        Raises:
            ValueError: there are not enough of them; the message tells why the others were left out.
        """
        memory_gb = 0.0 if memory_requirements is None else tuple(memory_requirements)
        request = PlacementRequest(num_devices=num_devices, memory_gb=memory_gb)
        return list(place(self.cluster_topology, request, self.health()).device_ids)

    def shutdown(self) -> None:
        """Stop the thread and close the drivers. May be called again."""
        self.telemetry.stop()
        if self._machine is not None:
            self._machine.close()


def create_hardware_manager(enable_monitoring: bool = True) -> HardwareTopologyManager:
    """A manager of this machine."""
    return HardwareTopologyManager(enable_monitoring)
