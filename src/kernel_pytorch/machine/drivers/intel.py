"""Intel GPUs through torch.xpu, which is all that PyTorch's users of them have."""

from __future__ import annotations

from ..facts import DeviceInfo, DeviceLink, HardwareVendor, Missing
from ..readings import DeviceReading
from .driver import DriverAbsentError


class IntelDriver:
    """The GPUs that torch.xpu shows. Imports torch. Neither temperature nor power nor PCI address are told.

    Raises:
        DriverAbsentError: no torch, or torch sees no such GPU.
    """

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise DriverAbsentError("torch is not installed", "pip install torch") from error
        if not torch.xpu.is_available():
            raise DriverAbsentError("torch.xpu sees no GPU", "install Intel's driver and PyTorch's XPU build")
        self._xpu = torch.xpu

    @property
    def missing(self) -> list[Missing]:
        what = "Intel GPUs: temperature, power, clocks, PCI address"
        return [Missing(what=what, why="torch.xpu does not tell")]

    def close(self) -> None:
        """torch keeps its GPUs open."""

    @property
    def indices(self) -> list[int]:
        return list(range(self._xpu.device_count()))

    def devices(self) -> list[DeviceInfo]:
        return [self._device(index) for index in self.indices]

    def _device(self, index: int) -> DeviceInfo:
        properties = self._xpu.get_device_properties(index)
        uuid = getattr(properties, "uuid", None)
        return DeviceInfo(
            device_id=index,
            kind="gpu",
            index=index,
            vendor=HardwareVendor.INTEL,
            name=properties.name,
            uuid=None if uuid is None else str(uuid),
            memory_bytes=properties.total_memory,
            compute_units=getattr(properties, "gpu_subslice_count", None),
        )

    def links(self) -> list[DeviceLink]:
        return []

    def read(self, index: int) -> DeviceReading:
        try:
            free, total = self._xpu.mem_get_info(index)
        except RuntimeError:  # not every GPU and driver tells
            return DeviceReading()
        return DeviceReading(memory_used_bytes=total - free)
