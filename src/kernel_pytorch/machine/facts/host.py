"""The host: CPUs, caches, NUMA nodes, limits, network interfaces, disks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .device import HardwareVendor


@dataclass(frozen=True, kw_only=True)
class Cache:
    level: int
    type: Literal["data", "instruction", "unified"]
    size_bytes: int
    cpus: tuple[int, ...]
    """The CPUs that share it."""


@dataclass(frozen=True, kw_only=True)
class CpuPackage:
    """A socket."""

    package_id: int
    model: str | None
    vendor: HardwareVendor
    cores: tuple[tuple[int, ...], ...]
    """For each core its CPUs (hardware threads), online ones only."""

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for core in self.cores for cpu in core))


@dataclass(frozen=True, kw_only=True)
class HugePages:
    size_bytes: int
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class NumaNode:
    numa_id: int
    cpus: tuple[int, ...]
    memory_bytes: int | None
    distances: tuple[int, ...]
    """To each NUMA node in the order of their ids, 10 being its own memory (ACPI SLIT)."""
    huge_pages: tuple[HugePages, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this process may use of the machine: the narrowest of its affinity and its cgroups."""

    cpus: tuple[int, ...]
    """CPUs it may run on."""
    cpu_quota: float | None
    """CPU seconds per second that its cgroups grant; None: no limit."""
    memory_bytes: int | None
    """Memory that its cgroups grant; None: no limit."""

    @property
    def usable_cpus(self) -> float:
        """CPUs' worth of time: a container with a quota of 2 on 64 CPUs has 2."""
        return len(self.cpus) if self.cpu_quota is None else min(len(self.cpus), self.cpu_quota)


@dataclass(frozen=True, kw_only=True)
class NetworkInterface:
    name: str
    kind: Literal["ethernet", "infiniband", "roce", "loopback", "virtual"] | None
    """None: another one, or unknown."""
    speed_gbit_s: float | None = None
    mtu: int | None = None
    driver: str | None = None
    carrier: bool | None = None
    """Of an RDMA device without an interface: whether any of its ports is active."""
    numa_node: int | None = None
    rdma_device: str | None = None
    """Name of its InfiniBand or RoCE device, as in NCCL_IB_HCA."""


@dataclass(frozen=True, kw_only=True)
class BlockDevice:
    name: str
    kind: Literal["nvme", "ssd", "hdd", "virtual"] | None
    size_bytes: int
    model: str | None = None
    numa_node: int | None = None
