"""Devices (accelerators or, on a machine without any, CPU packages) and the links between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Literal

from ..readings import DeviceReading


class HardwareVendor(Enum):
    """The maker of a device."""

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
        """The member whose value is ``architecture``; None if there is none."""
        return next((member for member in cls if member.value == architecture), None)


class ThermalState(Enum):
    """A device's temperature in four grades; see :meth:`of`."""

    OPTIMAL = "optimal"
    WARM = "warm"
    HOT = "hot"
    CRITICAL = "critical"

    @classmethod
    def of(cls, temperature_c: float | None) -> ThermalState | None:
        """Optimal below 70 degrees Celsius, warm below 80, hot below 90, else critical; None if unknown."""
        if temperature_c is None:
            return None
        bounds = ((70, cls.OPTIMAL), (80, cls.WARM), (90, cls.HOT))
        return next((state for bound, state in bounds if temperature_c < bound), cls.CRITICAL)


@dataclass(frozen=True, kw_only=True)
class PciLink:
    """A device's PCI Express link: generation and width (lanes) now, and the highest that it supports."""

    address: str
    """Domain, bus, device and function, such as 0000:1b:00.0."""
    generation: int | None = None
    generation_max: int | None = None
    width: int | None = None
    width_max: int | None = None


@dataclass(frozen=True, kw_only=True)
class MigInstance:
    """A Multi-Instance GPU instance: a partition of an NVIDIA GPU that works as a separate GPU."""

    uuid: str
    name: str | None
    memory_bytes: int | None
    compute_units: int | None
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None
    hidden: str | None = None
    """Why this process may not use it; None if it may."""


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The vendor's peak figures, without sparsity."""

    flops: dict[str, float]
    """FLOP/s by data type: float32, tf32, bfloat16, float16, float8."""
    memory_gb_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """A device: an accelerator or, on a machine without any, a CPU package."""

    device_id: int
    """0 to n - 1 inside a node. In a cluster's topology, offset by the devices of the nodes before."""
    kind: Literal["gpu", "cpu"]
    index: int
    """The driver's index of it in its node (by PCI address); for a CPU its package id."""
    vendor: HardwareVendor
    name: str
    uuid: str | None = None
    architecture: str | None = None
    """CUDA compute capability ("9.0") or AMD gfx target ("gfx942")."""
    memory_bytes: int | None = None
    memory_shared: bool = False
    """Whether its memory is the host's, as on NVIDIA GB10."""
    compute_units: int | None = None
    """Number of streaming multiprocessors, compute units, Xe cores or CPU cores."""
    base_clock_mhz: int | None = None
    boost_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    """The highest memory clock."""
    power_limit_w: float | None = None
    power_limit_min_w: float | None = None
    power_limit_max_w: float | None = None
    slowdown_temperature_c: float | None = None
    pci: PciLink | None = None
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    """The CPUs of its NUMA node; for a CPU package its own."""
    mig_enabled: bool | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    ecc_enabled: bool | None = None
    persistence_mode: bool | None = None
    hidden: str | None = None
    """Why this process may not use it, such as "is hidden by CUDA_VISIBLE_DEVICES=4,5"; None if it may."""
    visible_as: str | None = None
    """Its entry in the variable that selects a process's GPUs (CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES,
    ZE_AFFINITY_MASK), in the form in which it was set, such as "4" or "GPU-8932f937"; None: use ``index``."""
    peaks: Peaks | None = None
    reading: DeviceReading = field(default_factory=DeviceReading)
    """Its reading (temperature, power, clocks and so on) at discovery."""

    @property
    def label(self) -> str:
        """Kind and id, such as ``gpu:3``."""
        return f"{self.kind}:{self.device_id}"

    @property
    def best_instance(self) -> MigInstance | None:
        """The largest MIG instance by memory that this process may use."""
        usable = [instance for instance in self.mig_instances if instance.hidden is None]
        return max(usable, key=lambda instance: instance.memory_bytes or 0, default=None)

    @property
    def capability(self) -> DeviceCapability | None:
        """``architecture`` as a member of the enumeration; None if unknown or not listed."""
        return DeviceCapability.of(self.architecture)

    @property
    def memory_gb(self) -> float | None:
        """Size of its memory."""
        return None if self.memory_bytes is None else self.memory_bytes / 1e9

    @property
    def memory_used_gb(self) -> float | None:
        """Memory in use at discovery."""
        used = self.reading.memory_used_bytes
        return None if used is None else used / 1e9

    @property
    def memory_bandwidth_gb_s(self) -> float | None:
        """The vendor's peak bandwidth."""
        return self.peaks.memory_gb_s if self.peaks else None

    @property
    def peak_flops_fp32(self) -> float | None:
        """The vendor's peak FLOP/s in float32."""
        return self.peaks.flops.get("float32") if self.peaks else None

    @property
    def peak_flops_fp16(self) -> float | None:
        """The vendor's peak FLOP/s in float16."""
        return self.peaks.flops.get("float16") if self.peaks else None

    @property
    def pci_slot(self) -> str | None:
        """Its PCI address."""
        return self.pci.address if self.pci else None

    @property
    def current_temp_c(self) -> float | None:
        """Temperature at discovery."""
        return self.reading.temperature_c

    @property
    def current_power_w(self) -> float | None:
        """Power draw at discovery."""
        return self.reading.power_w

    @property
    def current_utilization(self) -> float | None:
        """Utilization in percent, as in earlier versions; ``reading.utilization`` is a share of 1."""
        return None if self.reading.utilization is None else 100 * self.reading.utilization

    @property
    def thermal_state(self) -> ThermalState | None:
        """The grade of its temperature at discovery."""
        return ThermalState.of(self.reading.temperature_c)


class LinkKind(IntEnum):
    """What connects two devices of a node, nearest first: the levels of ``nvidia-smi topo -m``."""

    NVLINK = 0
    """NVLink, or AMD's xGMI."""
    PCIE_SWITCH = 1
    """PCIe switches only (PIX, PXB)."""
    HOST_BRIDGE = 2
    """The PCIe host bridges of one NUMA node (PHB, NODE); between CPU cores, the node's memory."""
    SOCKET = 3
    """The interconnect between NUMA nodes (SYS)."""

    @property
    def label(self) -> str:
        """The kind in words."""
        return ("NVLink", "PCIe switch", "PCIe host bridge", "between sockets")[self]


@dataclass(frozen=True, kw_only=True)
class DeviceLink:
    """The shortest path between two devices of one node; ``a < b`` are device ids."""

    a: int
    b: int
    kind: LinkKind
    lanes: int | None = None
    """Number of NVLinks or xGMI links between the two, or of each to the NVSwitches."""
    version: int | None = None
    gb_s: float | None = None
    """In one direction: measured, or for NVLink the lanes times the rate of its version."""


@dataclass(frozen=True, kw_only=True)
class GpuIdentity:
    """Identity of a GPU in torch, whose indexes, and for AMD also UUIDs, differ from the driver's."""

    uuid: str | None
    pci_address: str | None
    """For a MIG instance that of its GPU."""

    def is_of(self, device: DeviceInfo) -> bool:
        """Whether it is ``device``: by PCI address if both have one, else by UUID."""
        if self.pci_address is not None and device.pci is not None:
            return self.pci_address == device.pci.address
        if self.uuid is None or device.uuid is None:
            return False
        return self.uuid.lower().removeprefix("gpu-") == device.uuid.lower().removeprefix("gpu-")
