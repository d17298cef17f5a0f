"""Intel GPUs through torch.xpu, which is all that PyTorch's users of them have."""

from __future__ import annotations

from typing import Any

from ..facts import DeviceInfo, DeviceLink, HardwareVendor, Missing
from ..readings import DeviceReading
from .driver import DriverAbsentError, DriverUnavailableError, note, parts, text


class IntelDriver:
    """The GPUs that torch.xpu shows. Imports torch. Neither temperature nor power nor PCI address are told.

    Raises:
        DriverAbsentError: no torch, or torch sees no such GPU.
        DriverUnavailableError: torch fails when it looks for one.
    """

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise DriverAbsentError("torch is not installed", "pip install torch") from error
        self._xpu: Any = getattr(torch, "xpu", None)  # PyTorch 2.4
        what = "Intel GPUs: temperature, power, clocks, PCI address"
        self._missing = [Missing(what=what, why="torch.xpu does not report them")]
        fix = "install Intel's driver and PyTorch's XPU build"
        if self._xpu is None or self._ask("is_available") is False:
            raise DriverAbsentError("torch.xpu sees no GPU", fix)
        if len(self._missing) > 1:
            raise DriverUnavailableError(self._missing[-1].why, fix)

    @property
    def missing(self) -> list[Missing]:
        return self._missing

    def close(self) -> None:
        """torch keeps its GPUs open."""

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The answer of a function of torch.xpu; None, and a note, if it is absent or raises."""
        try:
            return getattr(self._xpu, function)(*arguments)
        except (
            Exception
        ) as error:  # RuntimeError, or whatever the binding meets in a driver of another version
            note(self._missing, f"Intel GPU: {function}", f"torch.xpu raised {type(error).__name__}: {error}")
            return None

    @property
    def indices(self) -> list[int]:
        return list(range(self._ask("device_count") or 0))

    def devices(self) -> list[DeviceInfo]:
        return [self._device(index) for index in self.indices]

    def _device(self, index: int) -> DeviceInfo:
        properties = self._ask("get_device_properties", index)
        uuid = getattr(properties, "uuid", None)
        return DeviceInfo(
            device_id=index,
            kind="gpu",
            index=index,
            vendor=HardwareVendor.INTEL,
            name=text(getattr(properties, "name", None)) or "Intel GPU",
            uuid=None if uuid is None else str(uuid),
            memory_bytes=getattr(properties, "total_memory", None),
            compute_units=getattr(properties, "gpu_subslice_count", None),
        )

    def links(self) -> list[DeviceLink]:
        return []

    def read(self, index: int) -> DeviceReading:
        free, total = parts(self._ask("mem_get_info", index), 2)  # not every GPU and driver tells
        numbers = type(free) is int and type(total) is int
        return DeviceReading(memory_used_bytes=total - free if numbers else None)
