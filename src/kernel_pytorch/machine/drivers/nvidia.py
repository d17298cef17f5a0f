"""NVIDIA GPUs: what they are and how they are joined, through NVML."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from ..facts import DeviceInfo, DeviceLink, HardwareVendor, LinkKind, MigInstance, Missing, PciLink
from ..files import Files
from ..host.pci import numa_node_of
from ..readings import DeviceReading
from .nvidia_readings import NvidiaReader
from .nvlink import pci_address, read_nvlinks
from .nvml import Nvml, scaled

_MIB = 1 << 20
# FP32 cores of a multiprocessor by compute capability; 128 since 8.6 (CUDA C++ Programming Guide, appendix).
_CORES_PER_MULTIPROCESSOR = {(7, 0): 64, (7, 5): 64, (8, 0): 64}


class NvidiaDriver:
    """The GPUs that NVML shows.

    Raises:
        DriverUnavailableError: no nvidia-ml-py, no driver, or no permission.
    """

    def __init__(self, files: Files) -> None:
        self._nvml, self._files = Nvml(), files
        self._reader = NvidiaReader(self._nvml)

    @property
    def missing(self) -> list[Missing]:
        return self._nvml.missing

    def close(self) -> None:
        self._reader.close()
        self._nvml.close()

    def read(self, index: int) -> DeviceReading:
        return self._reader.read(index)

    @property
    def indices(self) -> list[int]:
        return list(self._nvml.handles)

    def devices(self) -> list[DeviceInfo]:
        return [self._device(index, handle) for index, handle in self._nvml.handles.items()]

    def _device(self, index: int, handle: Any) -> DeviceInfo:
        nvml, ask, maybe = self._nvml.api, self._nvml.ask, self._nvml.maybe
        pci = self._pci(handle)
        memory = ask("memory", "nvmlDeviceGetMemoryInfo", handle)
        capability = ask("compute capability", "nvmlDeviceGetCudaComputeCapability", handle)
        limits = maybe("nvmlDeviceGetPowerManagementLimitConstraints", handle) or (None, None)
        ecc, mig = maybe("nvmlDeviceGetEccMode", handle), maybe("nvmlDeviceGetMigMode", handle)
        persistence = maybe("nvmlDeviceGetPersistenceMode", handle)
        slowdown = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return DeviceInfo(
            device_id=index,
            kind="gpu",
            index=index,
            vendor=HardwareVendor.NVIDIA,
            name=ask("name", "nvmlDeviceGetName", handle) or "NVIDIA GPU",
            uuid=ask("UUID", "nvmlDeviceGetUUID", handle),
            architecture=None if capability is None else ".".join(map(str, capability)),
            memory_bytes=None if memory is None else memory.total,
            compute_units=self._multiprocessors(handle, None if capability is None else tuple(capability)),
            boost_clock_mhz=maybe("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=maybe("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM),
            power_limit_w=scaled(maybe("nvmlDeviceGetPowerManagementLimit", handle), 1e-3),
            power_limit_min_w=scaled(limits[0], 1e-3),
            power_limit_max_w=scaled(limits[1], 1e-3),
            slowdown_temperature_c=maybe("nvmlDeviceGetTemperatureThreshold", handle, slowdown),
            pci=pci,
            numa_node=numa_node_of(self._files, pci.address if pci else None),
            mig_enabled=None if mig is None else mig[0] == 1,
            mig_instances=self._mig_instances(handle) if mig is not None and mig[0] == 1 else (),
            ecc_enabled=None if ecc is None else ecc[0] == 1,
            persistence_mode=None if persistence is None else persistence == 1,
        )

    def _multiprocessors(self, handle: Any, capability: tuple[int, int] | None) -> int | None:
        """NVML tells multiprocessors of GPUs that can be cut into instances; of others, their cores."""
        attributes = self._nvml.maybe("nvmlDeviceGetAttributes_v2", handle)
        if attributes is not None:
            return int(attributes.multiprocessorCount)
        cores = self._nvml.maybe("nvmlDeviceGetNumGpuCores", handle)
        if cores is None or capability is None or capability < (7, 0):
            return None
        return int(cores) // _CORES_PER_MULTIPROCESSOR.get(capability, 128)

    def _pci(self, handle: Any) -> PciLink | None:
        info, maybe = self._nvml.ask("PCI address", "nvmlDeviceGetPciInfo", handle), self._nvml.maybe
        if info is None:
            return None
        return PciLink(
            address=pci_address(info.busId),
            generation=maybe("nvmlDeviceGetCurrPcieLinkGeneration", handle),
            generation_max=maybe("nvmlDeviceGetMaxPcieLinkGeneration", handle),
            width=maybe("nvmlDeviceGetCurrPcieLinkWidth", handle),
            width_max=maybe("nvmlDeviceGetMaxPcieLinkWidth", handle),
        )

    def _mig_instances(self, handle: Any) -> tuple[MigInstance, ...]:
        maybe = self._nvml.maybe
        slots = range(maybe("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
        instances = (maybe("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in slots)
        found = []
        for instance in filter(None, instances):  # the others are empty slots
            attributes = maybe("nvmlDeviceGetAttributes_v2", instance)
            found.append(
                MigInstance(
                    uuid=self._nvml.ask("UUID of a MIG instance", "nvmlDeviceGetUUID", instance) or "unknown",
                    name=maybe("nvmlDeviceGetName", instance),
                    memory_bytes=None if attributes is None else attributes.memorySizeMB * _MIB,
                    compute_units=None if attributes is None else attributes.multiprocessorCount,
                    gpu_instance_id=maybe("nvmlDeviceGetGpuInstanceId", instance),
                    compute_instance_id=maybe("nvmlDeviceGetComputeInstanceId", instance),
                )
            )
        return tuple(found)

    def links(self) -> list[DeviceLink]:
        """NVLinks where there are some, else what lies between the GPUs on the PCI bus."""
        nvml = self._nvml.api
        places = {index: self._pci(handle) for index, handle in self._nvml.handles.items()}
        found = read_nvlinks(self._nvml, {pci.address: index for index, pci in places.items() if pci})
        levels = {
            nvml.NVML_TOPOLOGY_INTERNAL: LinkKind.PCIE_SWITCH,
            nvml.NVML_TOPOLOGY_SINGLE: LinkKind.PCIE_SWITCH,
            nvml.NVML_TOPOLOGY_MULTIPLE: LinkKind.PCIE_SWITCH,
            nvml.NVML_TOPOLOGY_HOSTBRIDGE: LinkKind.HOST_BRIDGE,
            nvml.NVML_TOPOLOGY_NODE: LinkKind.HOST_BRIDGE,
            nvml.NVML_TOPOLOGY_SYSTEM: LinkKind.SOCKET,
        }
        for (a, ours), (b, theirs) in combinations(self._nvml.handles.items(), 2):
            level = self._nvml.maybe("nvmlDeviceGetTopologyCommonAncestor", ours, theirs)
            if (a, b) not in found and level in levels:
                found[a, b] = DeviceLink(a=a, b=b, kind=levels[level])
        return [found[pair] for pair in sorted(found)]
