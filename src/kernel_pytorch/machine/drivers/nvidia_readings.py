"""Readings of NVIDIA GPUs through NVML."""

from __future__ import annotations

import ctypes
from typing import Any

from ..files import Files
from ..possible import is_possible, sum_of_counters
from ..readings import DeviceReading
from .driver import flag, host_memory_bytes, parts, scaled
from .nvml import Nvml

# NVML's bits of nvmlClocksEventReasons; bit 1 is an idle GPU.
_THROTTLE = {
    0x02: "clocks_setting",
    0x04: "power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
}
_NVLINK_ERRORS = (
    "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
)
_RETIRED = (
    "NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS",
    "NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR",
)


class NvidiaReader:
    """Reads GPUs again and again, and listens for the driver's error reports (Xid)."""

    def __init__(self, nvml: Nvml, files: Files) -> None:
        self._nvml, self._files = nvml, files
        self._xids: dict[int, list[int]] = {}
        # A GPU that has fallen off the bus reports that, and may not tell its number any more.
        self._indices = {_address(handle): index for index, handle in nvml.handles.items()}
        self._nvlink_fields: dict[int, int] = {}
        self._events = nvml.ask("error reports (Xid)", "nvmlEventSetCreate")
        if self._events is not None:
            kind = nvml.constant("nvmlEventTypeXidCriticalError")
            for handle in nvml.handles.values():
                nvml.ask("error reports (Xid)", "nvmlDeviceRegisterEvents", handle, kind, self._events)

    def close(self) -> None:
        if self._events is not None:
            self._nvml.maybe("nvmlEventSetFree", self._events)

    def read(self, index: int) -> DeviceReading:
        """One reading; a silent one if the GPU has fallen off the bus."""
        maybe, constant, handle = self._nvml.maybe, self._nvml.constant, self._nvml.handles[index]
        utilization = maybe("nvmlDeviceGetUtilizationRates", handle)
        throttle = self._nvml.renamed(
            "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons", handle
        )
        corrected, uncorrected, pending, failed = parts(maybe("nvmlDeviceGetRemappedRows", handle), 4)
        remaps = corrected is not None
        self._collect_xids()
        return DeviceReading(
            temperature_c=maybe("nvmlDeviceGetTemperature", handle, constant("NVML_TEMPERATURE_GPU")),
            memory_temperature_c=self._nvml.field(handle, "NVML_FI_DEV_MEMORY_TEMP"),
            power_w=scaled(maybe("nvmlDeviceGetPowerUsage", handle), 1e-3),
            power_limit_w=scaled(maybe("nvmlDeviceGetEnforcedPowerLimit", handle), 1e-3),
            utilization=scaled(getattr(utilization, "gpu", None), 1e-2),
            memory_used_bytes=self._memory_used_bytes(handle),
            sm_clock_mhz=maybe("nvmlDeviceGetClockInfo", handle, constant("NVML_CLOCK_SM")),
            memory_clock_mhz=maybe("nvmlDeviceGetClockInfo", handle, constant("NVML_CLOCK_MEM")),
            throttle_reasons=throttle_reasons(throttle),
            energy_j=scaled(maybe("nvmlDeviceGetTotalEnergyConsumption", handle), 1e-3),
            ecc_corrected=self._ecc(handle, "NVML_MEMORY_ERROR_TYPE_CORRECTED"),
            ecc_uncorrected=self._ecc(handle, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED"),
            retired_pages=sum_of_counters((corrected, uncorrected))
            if remaps
            else self._retired_pages(handle),
            remap_failed=flag(failed),
            remap_pending=flag(
                pending if remaps else maybe("nvmlDeviceGetRetiredPagesPendingStatus", handle)
            ),
            nvlink_errors=self._nvlink_errors(index),
            pcie_replays=maybe("nvmlDeviceGetPcieReplayCounter", handle),
            xids=tuple(self._xids.pop(index, ())),
        )

    def _memory_used_bytes(self, handle: Any) -> Any:
        """Of the host's memory, where the GPU has none of its own."""
        memory = self._nvml.memory(handle)
        shared = getattr(memory, "total", None) == 0
        return host_memory_bytes(self._files)[1] if shared else getattr(memory, "used", None)

    def _collect_xids(self) -> None:
        while self._events is not None:
            event = self._nvml.maybe("nvmlEventSetWait_v2", self._events, 0)
            if event is None:  # a time-out: no more of them
                return
            index = self._indices.get(_address(event.device))
            if index is not None:
                self._xids.setdefault(index, []).append(int(event.eventData))

    def _ecc(self, handle: Any, kind: str) -> Any:
        constant = self._nvml.constant
        return self._nvml.maybe(
            "nvmlDeviceGetTotalEccErrors", handle, constant(kind), constant("NVML_VOLATILE_ECC")
        )

    def _retired_pages(self, handle: Any) -> Any:
        causes = [self._nvml.constant(cause) for cause in _RETIRED]
        pages = [self._nvml.maybe("nvmlDeviceGetRetiredPages", handle, cause) for cause in causes]
        return sum_of_counters(len(found) if isinstance(found, list) else None for found in pages)

    def _nvlink_errors(self, index: int) -> Any:
        """The sum of those counters that the GPU has; unknown while one of them is silent."""
        counts = (self._nvml.field(self._nvml.handles[index], name) for name in _NVLINK_ERRORS)
        known = [count for count in counts if count is not None]
        self._nvlink_fields[index] = max(len(known), self._nvlink_fields.get(index, 0))
        return sum_of_counters(known) if known and len(known) == self._nvlink_fields[index] else None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def throttle_reasons(bits: Any) -> Any:
    """The names of the reasons; what are no such bits, None too, stays as it is, as in :func:`scaled`."""
    if type(bits) is int and is_possible("throttle_bits", bits):
        return tuple(name for bit, name in _THROTTLE.items() if bits & bit)
    return bits
