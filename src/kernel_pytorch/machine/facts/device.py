"""Devices: accelerators and, on a machine without any, CPU packages; what joins them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Literal

from ..readings import DeviceReading


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
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None
    hidden: str | None = None
    """Why this process may not use it; None: nothing forbids it."""


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
    memory_shared: bool = False
    """Its memory is the host's (NVIDIA GB10)."""
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
    hidden: str | None = None
    """Why this process may not use it: "is hidden by CUDA_VISIBLE_DEVICES=4,5"; None: nothing forbids it."""
    visible_as: str | None = None
    """Its entry in the variable that chooses a process's GPUs (CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES,
    ZE_AFFINITY_MASK), in the form in which it was set: "4", "GPU-8932f937"; None: ``index``."""
    peaks: Peaks | None = None
    reading: DeviceReading = field(default_factory=DeviceReading)
    """Temperature, power, clocks and so on, when it was discovered."""

    @property
    def label(self) -> str:
        return f"{self.kind}:{self.device_id}"

    @property
    def best_instance(self) -> MigInstance | None:
        """The MIG instance with the most memory of those that this process may use."""
        usable = [instance for instance in self.mig_instances if instance.hidden is None]
        return max(usable, key=lambda instance: instance.memory_bytes or 0, default=None)

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

    @property
    def label(self) -> str:
        """As people read it."""
        return ("NVLink", "PCIe switch", "PCIe host bridge", "between sockets")[self]


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
