"""Nodes and clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..known import total
from .device import DeviceCapability, DeviceInfo, DeviceLink, HardwareVendor, LinkKind, PciLink
from .host import BlockDevice, Cache, CpuPackage, Limits, NetworkInterface, NumaNode


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Something that could not be read: what, why, and how to make it readable."""

    what: str
    why: str
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class NodeTopology:
    """One machine, or what a container shows of it."""

    node_id: int
    hostname: str
    boot_id: str | None
    """Linux's random id of this boot; with the network namespace it identifies the host."""
    network_namespace: str | None
    packages: tuple[CpuPackage, ...]
    caches: tuple[Cache, ...]
    numa_nodes: tuple[NumaNode, ...]
    memory_bytes: int | None
    limits: Limits
    devices: tuple[DeviceInfo, ...]
    links: tuple[DeviceLink, ...] = ()
    network_interfaces: tuple[NetworkInterface, ...] = ()
    storage: tuple[BlockDevice, ...] = ()
    missing: tuple[Missing, ...] = ()

    @property
    def cpu_count(self) -> int:
        """Number of CPUs that this process may run on."""
        return len(self.limits.cpus)

    @property
    def memory_gb(self) -> float | None:
        """Memory that this process may use."""
        known = [size for size in (self.memory_bytes, self.limits.memory_bytes) if size is not None]
        return min(known) / 1e9 if known else None

    @property
    def storage_type(self) -> str | None:
        """The fastest kind of storage on this node; None if there is none."""
        kinds = {device.kind for device in self.storage}
        return next((kind for kind in ("nvme", "ssd", "hdd", "virtual") if kind in kinds), None)

    @property
    def numa_topology(self) -> dict[int, list[int]]:
        """Device ids by NUMA node; devices whose node is unknown are left out."""
        found: dict[int, list[int]] = {}
        for device in self.devices:
            if device.numa_node is not None:
                found.setdefault(device.numa_node, []).append(device.device_id)
        return found

    @property
    def nvlink_topology(self) -> dict[tuple[int, int], float | None]:
        """GB/s in one direction, by pair of device ids."""
        return {(link.a, link.b): link.gb_s for link in self.links if link.kind is LinkKind.NVLINK}

    @property
    def pcie_topology(self) -> dict[int, PciLink]:
        """PCI links by device id."""
        return {device.device_id: device.pci for device in self.devices if device.pci}


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Where a rank of the process group runs."""

    rank: int
    node_id: int
    local_rank: int
    device_id: int | None
    """The device that it computes on; None if it has none of its own (more ranks than devices)."""


@dataclass(frozen=True, kw_only=True)
class ClusterTopology:
    """Nodes by id, and the ranks that run on them."""

    nodes: dict[int, NodeTopology]
    ranks: tuple[RankPlace, ...] = ()
    """In order of rank; empty outside a process group."""

    @property
    def devices(self) -> Iterator[DeviceInfo]:
        """The devices of all nodes, in order of node."""
        return (device for node in self.nodes.values() for device in node.devices)

    @property
    def total_devices(self) -> int:
        """Number of devices of all nodes."""
        return sum(len(node.devices) for node in self.nodes.values())

    @property
    def total_memory_gb(self) -> float | None:
        """Memory of all devices; None if that of any is unknown."""
        return total(device.memory_gb for device in self.devices)

    @property
    def vendor_distribution(self) -> dict[HardwareVendor, int]:
        """Number of devices by vendor."""
        return dict(Counter(device.vendor for device in self.devices))

    @property
    def capability_distribution(self) -> dict[DeviceCapability | None, int]:
        """Number of devices by capability."""
        return dict(Counter(device.capability for device in self.devices))

    @property
    def memory_distribution(self) -> dict[float | None, int]:
        """Number of devices by size of memory in GB."""
        return dict(Counter(device.memory_gb for device in self.devices))

    def node_of(self, device_id: int) -> NodeTopology:
        """The node that has the device.

        Raises:
            ValueError: no node has it.
        """
        for node in self.nodes.values():
            if any(device.device_id == device_id for device in node.devices):
                return node
        known = sorted(device.device_id for device in self.devices)
        raise ValueError(f"device_id must be one of {known}, got {device_id}")
