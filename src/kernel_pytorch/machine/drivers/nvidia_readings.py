"""Readings of NVIDIA GPUs through NVML."""

from __future__ import annotations

import ctypes
from typing import Any

from ..readings import DeviceReading
from .nvml import Nvml, scaled

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


class NvidiaReader:
    """Reads GPUs again and again, and listens for the driver's error reports (Xid)."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._xids: dict[int, list[int]] = {}
        # A GPU that has fallen off the bus reports that, and may not tell its number any more.
        self._indices = {_address(handle): index for index, handle in nvml.handles.items()}
        self._nvlink_fields: dict[int, int] = {}
        self._events = nvml.ask("error reports (Xid)", "nvmlEventSetCreate")
        if self._events is not None:
            kind = nvml.api.nvmlEventTypeXidCriticalError
            for handle in nvml.handles.values():
                nvml.ask("error reports (Xid)", "nvmlDeviceRegisterEvents", handle, kind, self._events)

    def close(self) -> None:
        if self._events is not None:
            self._nvml.maybe("nvmlEventSetFree", self._events)

    def read(self, index: int) -> DeviceReading:
        """One reading; a silent one if the GPU has fallen off the bus."""
        nvml, maybe, handle = self._nvml.api, self._nvml.maybe, self._nvml.handles[index]
        utilization = maybe("nvmlDeviceGetUtilizationRates", handle)
        memory = maybe("nvmlDeviceGetMemoryInfo", handle)
        throttle = maybe("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        remapped = maybe("nvmlDeviceGetRemappedRows", handle)
        self._collect_xids()
        return DeviceReading(
            temperature_c=maybe("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            memory_temperature_c=self._nvml.field(handle, nvml.NVML_FI_DEV_MEMORY_TEMP),
            power_w=scaled(maybe("nvmlDeviceGetPowerUsage", handle), 1e-3),
            power_limit_w=scaled(maybe("nvmlDeviceGetEnforcedPowerLimit", handle), 1e-3),
            utilization=None if utilization is None else utilization.gpu / 100,
            memory_used_bytes=None if memory is None else memory.used,
            sm_clock_mhz=maybe("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=maybe("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
            throttle_reasons=None if throttle is None else throttle_reasons(throttle),
            energy_j=scaled(maybe("nvmlDeviceGetTotalEnergyConsumption", handle), 1e-3),
            ecc_corrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            retired_pages=self._retired_pages(handle) if remapped is None else remapped[0] + remapped[1],
            remap_failed=None if remapped is None else bool(remapped[3]),
            nvlink_errors=self._nvlink_errors(index),
            pcie_replays=maybe("nvmlDeviceGetPcieReplayCounter", handle),
            xids=tuple(self._xids.pop(index, ())),
        )

    def _collect_xids(self) -> None:
        while self._events is not None:
            event = self._nvml.maybe("nvmlEventSetWait_v2", self._events, 0)
            if event is None:  # a time-out: no more of them
                return
            index = self._indices.get(_address(event.device))
            if index is not None:
                self._xids.setdefault(index, []).append(int(event.eventData))

    def _ecc(self, handle: Any, kind: int) -> int | None:
        volatile = self._nvml.api.NVML_VOLATILE_ECC
        count: int | None = self._nvml.maybe("nvmlDeviceGetTotalEccErrors", handle, kind, volatile)
        return count

    def _retired_pages(self, handle: Any) -> int | None:
        causes = (
            self._nvml.api.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
            self._nvml.api.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        )
        pages = [self._nvml.maybe("nvmlDeviceGetRetiredPages", handle, cause) for cause in causes]
        return None if None in pages else sum(map(len, pages))

    def _nvlink_errors(self, index: int) -> int | None:
        """The sum of those counters that the GPU has; unknown while one of them is silent."""
        nvml, handle = self._nvml.api, self._nvml.handles[index]
        totals = (
            nvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
            nvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
            nvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
            nvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
        )
        counts = (self._nvml.field(handle, total) for total in totals)
        known = [count for count in counts if count is not None]
        self._nvlink_fields[index] = max(len(known), self._nvlink_fields.get(index, 0))
        return sum(known) if known and len(known) == self._nvlink_fields[index] else None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def throttle_reasons(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLE.items() if bits & bit)
