"""NVIDIA GPUs: what they are and how they are joined, through NVML."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, repeat
from typing import Any

from ..facts import DeviceInfo, DeviceLink, HardwareVendor, LinkKind, MigInstance, Missing, PciLink
from ..files import Files
from ..host.pci import accelerators, numa_node_of
from ..readings import DeviceReading
from .driver import flag, host_memory_bytes, parts, scaled, text
from .nvidia_readings import NvidiaReader
from .nvlink import pci_address, read_nvlinks
from .nvml import Nvml

UNNAMED = "NVIDIA GPU"
"""The name of a GPU that does not tell its model."""
_MIB = 1 << 20
# FP32 cores of a multiprocessor by compute capability; 128 since 8.6 (CUDA C++ Programming Guide, appendix).
_CORES_PER_MULTIPROCESSOR = {(7, 0): 64, (7, 5): 64, (8, 0): 64}
_MOST_MIG_INSTANCES = 7  # NVIDIA, "Multi-Instance GPU User Guide"
# nvmlGpuTopologyLevel_t: internal, single switch, several switches, host bridge, NUMA node, system.
_LEVELS = {
    0: LinkKind.PCIE_SWITCH,
    10: LinkKind.PCIE_SWITCH,
    20: LinkKind.PCIE_SWITCH,
    30: LinkKind.HOST_BRIDGE,
    40: LinkKind.HOST_BRIDGE,
    50: LinkKind.SOCKET,
}


class NvidiaDriver:
    """The GPUs that NVML shows.

    Raises:
        DriverUnavailableError: no nvidia-ml-py, no driver, or no permission.
    """

    def __init__(self, files: Files) -> None:
        self._nvml, self._files = Nvml(), files
        self._reader = NvidiaReader(self._nvml, files)
        self._lost = {index: self._lost_device(index, address) for index, address in self._lost_addresses()}
        for index, device in self._lost.items():
            address = f" ({device.pci.address})" if device.pci else ""
            fix = "reset it (nvidia-smi --gpu-reset), or reboot"
            self.missing.append(
                Missing(what=f"NVIDIA GPU {index}{address}", why=self._nvml.lost[index], fix=fix)
            )

    @property
    def missing(self) -> list[Missing]:
        return self._nvml.missing

    def close(self) -> None:
        self._reader.close()
        self._nvml.close()

    def read(self, index: int) -> DeviceReading:
        return DeviceReading(lost=True) if index in self._lost else self._reader.read(index)

    @property
    def indices(self) -> list[int]:
        return sorted([*self._nvml.handles, *self._lost])

    def devices(self) -> list[DeviceInfo]:
        handles = self._nvml.handles
        return [self._lost.get(index) or self._device(index, handles[index]) for index in self.indices]

    def _lost_addresses(self) -> Iterator[tuple[int, str | None]]:
        """PCI addresses of the GPUs that NVML cannot open: those on the bus that are left, if as many.

        NVML counts by address.
        """
        lost = self._nvml.lost
        if lost:
            shown = {pci.address for pci in map(self._pci, self._nvml.handles.values()) if pci}
            on_bus = [gpu.address for gpu in accelerators(self._files) if gpu.vendor is HardwareVendor.NVIDIA]
            hidden = [address for address in on_bus if address not in shown]
            yield from zip(lost, hidden if len(hidden) == len(lost) else repeat(None), strict=False)

    def _lost_device(self, index: int, address: str | None) -> DeviceInfo:
        return DeviceInfo(
            device_id=index,
            kind="gpu",
            index=index,
            vendor=HardwareVendor.NVIDIA,
            name=UNNAMED,
            pci=None if address is None else PciLink(address=address),
            numa_node=numa_node_of(self._files, address),
        )

    def _device(self, index: int, handle: Any) -> DeviceInfo:
        ask, maybe, constant = self._nvml.ask, self._nvml.maybe, self._nvml.constant
        pci = self._pci(handle)
        total = getattr(self._nvml.memory(handle), "total", None)
        capability = parts(ask("compute capability", "nvmlDeviceGetCudaComputeCapability", handle), 2)
        least, most = parts(maybe("nvmlDeviceGetPowerManagementLimitConstraints", handle), 2)
        mig = flag(parts(maybe("nvmlDeviceGetMigMode", handle), 2)[0])
        slowdown = constant("NVML_TEMPERATURE_THRESHOLD_SLOWDOWN")
        return DeviceInfo(
            device_id=index,
            kind="gpu",
            index=index,
            vendor=HardwareVendor.NVIDIA,
            name=text(ask("name", "nvmlDeviceGetName", handle)) or UNNAMED,
            uuid=text(ask("UUID", "nvmlDeviceGetUUID", handle)),
            architecture=None if None in capability else ".".join(map(str, capability)),
            memory_bytes=host_memory_bytes(self._files)[0] if total == 0 else total,
            memory_shared=total == 0,
            compute_units=self._multiprocessors(handle, capability),
            boost_clock_mhz=maybe("nvmlDeviceGetMaxClockInfo", handle, constant("NVML_CLOCK_SM")),
            memory_clock_mhz=maybe("nvmlDeviceGetMaxClockInfo", handle, constant("NVML_CLOCK_MEM")),
            power_limit_w=scaled(maybe("nvmlDeviceGetPowerManagementLimit", handle), 1e-3),
            power_limit_min_w=scaled(least, 1e-3),
            power_limit_max_w=scaled(most, 1e-3),
            slowdown_temperature_c=maybe("nvmlDeviceGetTemperatureThreshold", handle, slowdown),
            pci=pci,
            numa_node=numa_node_of(self._files, pci.address if pci else None),
            mig_enabled=mig,
            mig_instances=self._mig_instances(handle) if mig is True else (),
            ecc_enabled=flag(parts(maybe("nvmlDeviceGetEccMode", handle), 2)[0]),
            persistence_mode=flag(maybe("nvmlDeviceGetPersistenceMode", handle)),
        )

    def _multiprocessors(self, handle: Any, capability: tuple[Any, ...]) -> Any:
        """NVML tells multiprocessors of GPUs that can be cut into instances; of others, their cores."""
        attributes = self._nvml.maybe("nvmlDeviceGetAttributes_v2", handle)
        if attributes is not None:
            return getattr(attributes, "multiprocessorCount", None)
        cores = self._nvml.maybe("nvmlDeviceGetNumGpuCores", handle)
        if type(cores) is not int or None in capability or capability < (7, 0):
            return None
        return cores // _CORES_PER_MULTIPROCESSOR.get(capability, 128)

    def _pci(self, handle: Any) -> PciLink | None:
        info, maybe = self._nvml.ask("PCI address", "nvmlDeviceGetPciInfo", handle), self._nvml.maybe
        address = pci_address(getattr(info, "busId", None))
        if address is None:
            return None
        return PciLink(
            address=address,
            generation=maybe("nvmlDeviceGetCurrPcieLinkGeneration", handle),
            generation_max=maybe("nvmlDeviceGetMaxPcieLinkGeneration", handle),
            width=maybe("nvmlDeviceGetCurrPcieLinkWidth", handle),
            width_max=maybe("nvmlDeviceGetMaxPcieLinkWidth", handle),
        )

    def _mig_instances(self, handle: Any) -> tuple[MigInstance, ...]:
        maybe = self._nvml.maybe
        slots = range(_MOST_MIG_INSTANCES)
        instances = (maybe("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in slots)
        found = []
        for instance in filter(None, instances):  # the others are empty slots
            attributes = maybe("nvmlDeviceGetAttributes_v2", instance)
            uuid = text(self._nvml.ask("UUID of a MIG instance", "nvmlDeviceGetUUID", instance))
            found.append(
                MigInstance(
                    uuid=uuid or "unknown",
                    name=text(maybe("nvmlDeviceGetName", instance)),
                    memory_bytes=scaled(getattr(attributes, "memorySizeMB", None), _MIB),
                    compute_units=getattr(attributes, "multiprocessorCount", None),
                    gpu_instance_id=maybe("nvmlDeviceGetGpuInstanceId", instance),
                    compute_instance_id=maybe("nvmlDeviceGetComputeInstanceId", instance),
                )
            )
        return tuple(found)

    def links(self) -> list[DeviceLink]:
        """NVLinks where there are some, else what lies between the GPUs on the PCI bus."""
        addresses = {index: self._pci(handle) for index, handle in self._nvml.handles.items()}
        found = read_nvlinks(self._nvml, {pci.address: index for index, pci in addresses.items() if pci})
        for (a, ours), (b, theirs) in combinations(self._nvml.handles.items(), 2):
            level = self._nvml.maybe("nvmlDeviceGetTopologyCommonAncestor", ours, theirs)
            if (a, b) not in found and type(level) is int and level in _LEVELS:
                found[a, b] = DeviceLink(a=a, b=b, kind=_LEVELS[level])
        return [found[pair] for pair in sorted(found)]
