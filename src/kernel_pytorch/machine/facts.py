"""What a machine consists of: plain data, whoever read it.

A field is None where the fact could not be read; :class:`Missing` tells why. Sizes are in bytes where the
name says bytes, in 1e9 bytes where it says ``_gb``; CPUs are the numbers that Linux gives them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Literal

from .readings import DeviceReading


class HardwareVendor(Enum):
    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"
    UNKNOWN = "unknown"


class DeviceCapability(Enum):
    """An accelerator's architecture: CUDA's compute capability, AMD's gfx target, a family's name."""

    COMPUTE_7_0 = "7.0"
    COMPUTE_7_5 = "7.5"
    COMPUTE_8_0 = "8.0"
    COMPUTE_8_6 = "8.6"
    COMPUTE_8_9 = "8.9"
    COMPUTE_9_0 = "9.0"
    COMPUTE_10_0 = "10.0"
    COMPUTE_10_3 = "10.3"
    COMPUTE_12_0 = "12.0"
    GFX90A = "gfx90a"
    GFX942 = "gfx942"
    GFX950 = "gfx950"
    RDNA2 = "rdna2"
    RDNA3 = "rdna3"
    XE_HPG = "xe_hpg"

    @classmethod
    def of(cls, architecture: str | None) -> DeviceCapability | None:
        """The member whose value is ``architecture``; None for one that is not listed."""
        return next((member for member in cls if member.value == architecture), None)


class ThermalState(Enum):
    OPTIMAL = "optimal"
    WARM = "warm"
    HOT = "hot"
    CRITICAL = "critical"

    @classmethod
    def of(cls, temperature_c: float | None) -> ThermalState | None:
        """Below 70 degrees Celsius optimal, below 80 warm, below 90 hot, else critical; None if unknown."""
        if temperature_c is None:
            return None
        bounds = ((70, cls.OPTIMAL), (80, cls.WARM), (90, cls.HOT))
        return next((state for bound, state in bounds if temperature_c < bound), cls.CRITICAL)


class LinkKind(IntEnum):
    """What lies between two devices of a node, the nearest first: the levels of ``nvidia-smi topo -m``."""

    NVLINK = 0
    """NVLink, or AMD's xGMI."""
    PCIE_SWITCH = 1
    """PCIe switches only (PIX, PXB)."""
    HOST_BRIDGE = 2
    """The PCIe host bridges of one NUMA node (PHB, NODE), or its memory between CPU cores."""
    SOCKET = 3
    """The interconnect between NUMA nodes (SYS)."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Something that was not read: what, why, and what would make it readable."""

    what: str
    why: str
    fix: str | None = None


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
class PciLink:
    address: str
    """Domain, bus, device and function: 0000:1b:00.0."""
    generation: int | None = None
    generation_max: int | None = None
    width: int | None = None
    width_max: int | None = None


@dataclass(frozen=True, kw_only=True)
class MigInstance:
    """A slice of an NVIDIA GPU that works as a GPU of its own (Multi-Instance GPU)."""

    uuid: str
    name: str | None
    memory_bytes: int | None
    compute_units: int | None


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What the vendor promises, without sparsity."""

    flops: dict[str, float]
    """FLOP/s by dtype as torch names it: float32, tf32, bfloat16, float16, float8."""
    memory_gb_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """Something that computes: an accelerator or, on a machine without any, a CPU package."""

    device_id: int
    """Unique in the topology: counts the devices of all nodes, in order."""
    kind: Literal["gpu", "cpu"]
    index: int
    """In its node, as the driver counts (by PCI address); a package's id for a CPU."""
    vendor: HardwareVendor
    name: str
    uuid: str | None = None
    architecture: str | None = None
    """CUDA's compute capability ("9.0") or AMD's gfx target ("gfx942")."""
    memory_bytes: int | None = None
    compute_units: int | None = None
    """Streaming multiprocessors, compute units, Xe cores; a CPU's cores."""
    base_clock_mhz: int | None = None
    boost_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    """The highest, like boost_clock_mhz."""
    power_limit_w: float | None = None
    power_limit_min_w: float | None = None
    power_limit_max_w: float | None = None
    slowdown_temperature_c: float | None = None
    pci: PciLink | None = None
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    """The CPUs next to it: those of its NUMA node, of the package for a CPU."""
    mig_enabled: bool | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    ecc_enabled: bool | None = None
    persistence_mode: bool | None = None
    peaks: Peaks | None = None
    reading: DeviceReading = field(default_factory=DeviceReading)
    """Temperature, power, clocks and so on, when it was discovered."""

    @property
    def label(self) -> str:
        return f"{self.kind}:{self.device_id}"

    @property
    def capability(self) -> DeviceCapability | None:
        return DeviceCapability.of(self.architecture)

    @property
    def memory_gb(self) -> float | None:
        return None if self.memory_bytes is None else self.memory_bytes / 1e9

    @property
    def memory_used_gb(self) -> float | None:
        used = self.reading.memory_used_bytes
        return None if used is None else used / 1e9

    @property
    def memory_bandwidth_gb_s(self) -> float | None:
        return self.peaks.memory_gb_s if self.peaks else None

    @property
    def peak_flops_fp32(self) -> float | None:
        return self.peaks.flops.get("float32") if self.peaks else None

    @property
    def peak_flops_fp16(self) -> float | None:
        return self.peaks.flops.get("float16") if self.peaks else None

    @property
    def pci_slot(self) -> str | None:
        return self.pci.address if self.pci else None

    @property
    def current_temp_c(self) -> float | None:
        return self.reading.temperature_c

    @property
    def current_power_w(self) -> float | None:
        return self.reading.power_w

    @property
    def current_utilization(self) -> float | None:
        """Percent, as earlier versions had it; ``reading.utilization`` is a share of 1."""
        return None if self.reading.utilization is None else 100 * self.reading.utilization

    @property
    def thermal_state(self) -> ThermalState | None:
        return ThermalState.of(self.reading.temperature_c)


@dataclass(frozen=True, kw_only=True)
class DeviceLink:
    """The nearest way between two devices of one node; ``a < b`` are device ids."""

    a: int
    b: int
    kind: LinkKind
    lanes: int | None = None
    """NVLinks or xGMI links between the two; to the switch, where they meet in NVSwitches."""
    version: int | None = None
    gb_s: float | None = None
    """In one direction: as measured, or for NVLink the lanes times the rate of the version."""


@dataclass(frozen=True, kw_only=True)
class NetworkInterface:
    name: str
    kind: Literal["ethernet", "infiniband", "roce", "loopback", "virtual"]
    speed_gbit_s: float | None = None
    mtu: int | None = None
    driver: str | None = None
    carrier: bool | None = None
    numa_node: int | None = None
    rdma_device: str | None = None
    """Name of its InfiniBand or RoCE device, as in NCCL_IB_HCA."""


@dataclass(frozen=True, kw_only=True)
class BlockDevice:
    name: str
    kind: Literal["nvme", "ssd", "hdd", "virtual"]
    size_bytes: int
    model: str | None = None
    numa_node: int | None = None


@dataclass(frozen=True, kw_only=True)
class NodeTopology:
    """One machine, or what a container lets see of it."""

    node_id: int
    hostname: str
    boot_id: str | None
    """Linux's random id of this boot; with the network namespace it tells hosts apart."""
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
        """CPUs that this process may run on."""
        return len(self.limits.cpus)

    @property
    def memory_gb(self) -> float | None:
        """Memory that this process may use."""
        known = [size for size in (self.memory_bytes, self.limits.memory_bytes) if size is not None]
        return min(known) / 1e9 if known else None

    @property
    def storage_type(self) -> str | None:
        """The fastest kind of storage there is."""
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
        return {device.device_id: device.pci for device in self.devices if device.pci}


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Where a rank of the process group runs."""

    rank: int
    node_id: int
    local_rank: int
    device_id: int | None
    """The device it computes on; None: it has none of its own (more ranks than devices)."""


@dataclass(frozen=True, kw_only=True)
class ClusterTopology:
    nodes: dict[int, NodeTopology]
    ranks: tuple[RankPlace, ...] = ()
    """In order of rank; empty outside a process group."""

    @property
    def devices(self) -> Iterator[DeviceInfo]:
        return (device for node in self.nodes.values() for device in node.devices)

    @property
    def total_devices(self) -> int:
        return sum(len(node.devices) for node in self.nodes.values())

    @property
    def total_memory_gb(self) -> float | None:
        """Memory of all devices; None if one's is unknown."""
        sizes = [device.memory_gb for device in self.devices]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def vendor_distribution(self) -> dict[HardwareVendor, int]:
        return dict(Counter(device.vendor for device in self.devices))

    @property
    def capability_distribution(self) -> dict[DeviceCapability | None, int]:
        return dict(Counter(device.capability for device in self.devices))

    @property
    def memory_distribution(self) -> dict[float | None, int]:
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


@dataclass(frozen=True, kw_only=True)
class GpuIdentity:
    """A GPU as torch knows it. Drivers number and name GPUs otherwise: AMD's UUIDs are not torch's."""

    uuid: str | None
    pci_address: str | None
    """A MIG instance has that of its GPU."""

    def is_of(self, device: DeviceInfo) -> bool:
        if self.pci_address is not None and device.pci is not None:
            return self.pci_address == device.pci.address
        if self.uuid is None or device.uuid is None:
            return False
        return self.uuid.lower().removeprefix("gpu-") == device.uuid.lower().removeprefix("gpu-")
