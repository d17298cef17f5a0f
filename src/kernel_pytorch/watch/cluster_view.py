"""This node in its cluster. Only here are ids in the node converted to ids in the cluster."""

from __future__ import annotations

from ..groups import in_process_group
from ..machine.facts import ClusterTopology, DeviceInfo, NodeTopology
from ..machine.gather import gather_topology
from ..machine.live import Machine
from .health import ComponentHealth, HealthState
from .node_watch import NodeWatch
from .telemetry import Source

_OTHER_NODE = ComponentHealth(state=None, reason="it is in another node, which watches it itself")


class ClusterView:
    """A topology, and the watch of the devices of one of its nodes.

    Initially it has this node only; :meth:`discover` gathers the others. A device's id in the cluster is its
    id in the node plus :attr:`first_id`.

    Args:
        topology: default: this machine's.
        source: readings of the devices of ``topology``; default: this machine.

    Raises:
        ValueError: only one of topology and source is given.
    """

    def __init__(self, topology: ClusterTopology | None = None, source: Source | None = None) -> None:
        self.machine: Machine | None = None
        if topology is None and source is None:
            self.machine = source = Machine()
            topology = _single_node(self.machine.node)
        if topology is None or source is None:
            raise ValueError("topology and source go together: give both, or neither to read this machine")
        self.topology = topology
        self.watch = NodeWatch(tuple(topology.devices), source)
        self.first_id = 0

    def discover(self) -> ClusterTopology:
        """Read this machine again and, in a process group, gather the machines of all ranks.

        In a process group all ranks must call it, and all raise if one cannot read its machine. A topology
        passed to the constructor is kept.
        """
        if self.machine is None:
            return self.topology
        if not in_process_group():
            self.topology, self.first_id = _single_node(self.machine.refresh()), 0
        else:
            import torch.distributed as dist

            topology = gather_topology(self.machine.refresh)
            own = topology.nodes[topology.ranks[dist.get_rank()].node_id]
            self.topology, self.first_id = topology, own.devices[0].device_id
        return self.topology

    def node_id_of(self, device_id: int) -> int:
        """Convert a device's id in the cluster to its id in this node.

        Raises:
            ValueError: no such device, or it is in another node.
        """
        self.check(device_id)
        if device_id not in self.own_ids:
            raise ValueError(f"device_id {device_id}: {_OTHER_NODE.reason}")
        return device_id - self.first_id

    @property
    def own_ids(self) -> list[int]:
        """Cluster ids of the devices of this node."""
        return [self.first_id + device.device_id for device in self.watch.devices]

    @property
    def own_devices(self) -> list[DeviceInfo]:
        """The devices of this node, under their cluster ids."""
        own = set(self.own_ids)
        return [device for device in self.topology.devices if device.device_id in own]

    def check(self, device_id: int) -> None:
        """Raise ValueError if the cluster has no such device."""
        known = sorted(device.device_id for device in self.topology.devices)
        if device_id not in known:
            raise ValueError(f"device_id must be one of {known}, got {device_id}")

    def device_health(self) -> dict[int, ComponentHealth]:
        """Health of all devices of the cluster by id; unknown for those of other nodes."""
        own = {self.first_id + number: health for number, health in self.watch.device_health().items()}
        return {device.device_id: own.get(device.device_id, _OTHER_NODE) for device in self.topology.devices}

    def health(self) -> dict[str, ComponentHealth]:
        """Health of the components of this node by name, devices under their cluster ids."""
        labels = {
            device.label: f"{device.kind}:{self.first_id + device.device_id}" for device in self.watch.devices
        }
        return {labels.get(name, name): health for name, health in self.watch.health().items()}

    def states(self) -> dict[int, HealthState | None]:
        """Health state by device id, from a current reading; None: unknown."""
        self.watch.states()
        return {number: health.state for number, health in self.device_health().items()}

    def free_bytes(self) -> dict[int, int]:
        """Free memory by device id, where known: from the latest reading, else from the discovery."""
        latest = self.watch.latest
        read = {} if latest is None else {self.first_id + n: reading for n, reading in latest.devices.items()}
        used = {
            device.device_id: read.get(device.device_id, device.reading).memory_used_bytes
            for device in self.topology.devices
        }
        return {
            device.device_id: device.memory_bytes - taken
            for device in self.topology.devices
            if device.memory_bytes is not None and (taken := used[device.device_id]) is not None
        }

    def close(self) -> None:
        """Stop the sampling thread and close the drivers. May be called again."""
        self.watch.close()
        if self.machine is not None:
            self.machine.close()


def _single_node(node: NodeTopology) -> ClusterTopology:
    return ClusterTopology(nodes={0: node})
