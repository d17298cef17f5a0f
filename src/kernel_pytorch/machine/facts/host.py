"""The host: CPUs, caches, NUMA nodes, limits, network interfaces, disks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .device import HardwareVendor


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A CPU cache."""

    level: int
    type: Literal["data", "instruction", "unified"]
    size_bytes: int
    cpus: tuple[int, ...]
    """The CPUs that share it."""


@dataclass(frozen=True, kw_only=True)
class CpuPackage:
    """A CPU package (socket)."""

    package_id: int
    model: str | None
    vendor: HardwareVendor
    cores: tuple[tuple[int, ...], ...]
    """For each core its online CPUs (hardware threads)."""

    @property
    def cpus(self) -> tuple[int, ...]:
        """The online CPUs of all cores."""
        return tuple(sorted(cpu for core in self.cores for cpu in core))


@dataclass(frozen=True, kw_only=True)
class HugePages:
    """The pool of huge pages of one size: how many there are, and how many are free."""

    size_bytes: int
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class NumaNode:
    """A NUMA node with its online CPUs and its memory."""

    numa_id: int
    cpus: tuple[int, ...]
    memory_bytes: int | None
    distances: tuple[int, ...]
    """Distance to each NUMA node in order of id; 10 to itself (ACPI SLIT). Empty if unknown."""
    huge_pages: tuple[HugePages, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this process may use of the machine, by its CPU affinity and its control groups."""

    cpus: tuple[int, ...]
    """CPUs it may run on."""
    cpu_quota: float | None
    """CPU seconds per second that its control groups grant; None: no limit."""
    memory_bytes: int | None
    """Memory that its control groups grant; None: no limit."""

    @property
    def usable_cpus(self) -> float:
        """CPU seconds per second: 2 in a container with a quota of 2 on 64 CPUs."""
        return len(self.cpus) if self.cpu_quota is None else min(len(self.cpus), self.cpu_quota)


@dataclass(frozen=True, kw_only=True)
class NetworkInterface:
    """A network interface, or an RDMA device without one."""

    name: str
    kind: Literal["ethernet", "infiniband", "roce", "loopback", "virtual"] | None
    """None: another kind, or unknown."""
    speed_gbit_s: float | None = None
    mtu: int | None = None
    driver: str | None = None
    carrier: bool | None = None
    """Whether it has a carrier; for an RDMA device without an interface, whether any port is active."""
    numa_node: int | None = None
    rdma_device: str | None = None
    """Name of its InfiniBand or RoCE device, as used in NCCL_IB_HCA."""


@dataclass(frozen=True, kw_only=True)
class BlockDevice:
    """A disk; not a partition."""

    name: str
    kind: Literal["nvme", "ssd", "hdd", "virtual"] | None
    size_bytes: int
    model: str | None = None
    numa_node: int | None = None
