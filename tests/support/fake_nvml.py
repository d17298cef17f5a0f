"""NVML without a GPU: nvidia-ml-py itself, its functions answering from a table as the driver would.

Structures, constants and errors are the real module's; what a GPU of the table does not answer raises
NVMLError_NotSupported, as the driver's functions do.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from kernel_pytorch.machine import worker

_FIRST_HANDLE = 0x1000
_RENAMED = {"GetCurrentClocksEventReasons": "GetCurrentClocksThrottleReasons"}


@dataclass(eq=False)
class Gpu:
    """One GPU: the answers by function name without ``nvmlDevice``; a callable is called, an error raised."""

    answers: dict[str, Any]
    fields: dict[int, int] = field(default_factory=dict)
    nvlinks: list[str | None] = field(default_factory=list)
    """PCI bus id of the peer by link; None for a switch."""


def error(code: int) -> pynvml.NVMLError:
    return pynvml.NVMLError(code)


def h100(index: int = 0, **answers: Any) -> Gpu:
    """An H100 SXM as its driver describes it."""
    bus = f"{0x1B + index:02X}"
    base = {
        "GetName": "NVIDIA H100 80GB HBM3",
        "GetUUID": f"GPU-00000000-0000-0000-0000-{index:012d}",
        "GetIndex": index,
        "GetMemoryInfo": SimpleNamespace(total=85520809984, used=1 << 30, free=85520809984 - (1 << 30)),
        "GetCudaComputeCapability": (9, 0),
        "GetAttributes_v2": SimpleNamespace(multiprocessorCount=132, memorySizeMB=81559),
        "GetPowerManagementLimitConstraints": [200000, 700000],
        "GetPowerManagementLimit": 700000,
        "GetEnforcedPowerLimit": 650000,
        "GetPowerUsage": 123456,
        "GetEccMode": [1, 1],
        "GetMigMode": [0, 0],
        "GetPersistenceMode": 1,
        "GetTemperatureThreshold": lambda kind: {pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: 87}[kind],
        "GetMaxClockInfo": lambda kind: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind],
        "GetClockInfo": lambda kind: {pynvml.NVML_CLOCK_SM: 1755, pynvml.NVML_CLOCK_MEM: 2619}[kind],
        "GetPciInfo": SimpleNamespace(busId=f"00000000:{bus}:00.0".encode()),
        "GetCurrPcieLinkGeneration": 1,
        "GetMaxPcieLinkGeneration": 5,
        "GetCurrPcieLinkWidth": 16,
        "GetMaxPcieLinkWidth": 16,
        "GetTemperature": 41,
        "GetUtilizationRates": SimpleNamespace(gpu=73, memory=20),
        "GetCurrentClocksThrottleReasons": 0x1 | 0x4 | 0x40,
        "GetTotalEnergyConsumption": 5_000_250,
        "GetTotalEccErrors": lambda kind, _: {0: 3, 1: 0}[kind],
        "GetRemappedRows": (2, 1, 0, 0),
        "GetPcieReplayCounter": 4,
    }
    fields = {pynvml.NVML_FI_DEV_MEMORY_TEMP: 55, pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: 26562}
    return Gpu(answers={**base, **answers}, fields=fields)


class FakeNvml:
    """Puts GPUs behind nvidia-ml-py for a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: Iterable[Gpu]) -> None:
        self.gpus, self.events = list(gpus), []
        self.initialised, self.shut_down, self.event_sets = 0, 0, 0
        self.levels: dict[tuple[int, int], int] = {}
        monkeypatch.setattr(worker, "READ_S", 60.0)  # the table answers, on however busy a machine

        def install(name: str, function: Any) -> None:
            if hasattr(pynvml, name):  # older releases lack some
                monkeypatch.setattr(pynvml, name, function)

        for name in dir(pynvml):
            if name.startswith("nvmlDevice"):
                install(name, self._answer(name.removeprefix("nvmlDevice"), getattr(pynvml, name)))
        install("nvmlInit", self._initialise)
        install("nvmlShutdown", self._shut_down)
        install("nvmlDeviceGetCount", lambda: len(self.gpus))
        install("nvmlDeviceGetHandleByIndex", self.handle)
        install("nvmlEventSetCreate", lambda: self._event_sets(1))
        install("nvmlEventSetFree", lambda events: self._event_sets(-1))
        install("nvmlDeviceRegisterEvents", lambda gpu, kind, events: None)
        install("nvmlEventSetWait_v2", self._event)
        install("nvmlDeviceGetFieldValues", self._field_values)
        install("nvmlDeviceGetNvLinkState", lambda gpu, link: int(self._link(gpu, link) is not False))
        install("nvmlDeviceGetNvLinkRemoteDeviceType", self._remote_type)
        install(
            "nvmlDeviceGetNvLinkRemotePciInfo",
            lambda handle, link: SimpleNamespace(busId=self._gpu(handle).nvlinks[link]),
        )
        install("nvmlDeviceGetTopologyCommonAncestor", self._level)

    def _initialise(self) -> None:
        self.initialised += 1

    def handle(self, index: int) -> Any:
        """A pointer, a new object each time, as NVML gives them."""
        return ctypes.cast(ctypes.c_void_p(_FIRST_HANDLE + index), pynvml.c_nvmlDevice_t)

    def _gpu(self, handle: Any) -> Gpu:
        if isinstance(handle, Gpu):  # a MIG instance
            return handle
        return self.gpus[ctypes.cast(handle, ctypes.c_void_p).value - _FIRST_HANDLE]

    def _shut_down(self) -> None:
        self.shut_down += 1

    def _event_sets(self, change: int) -> str:
        assert change > 0 or self.shut_down < self.initialised, "freed after NVML was shut down"
        self.event_sets += change
        return "events"

    def _answer(self, name: str, original: Any) -> Any:
        """Answers as ``original`` would, and takes the arguments that it takes."""
        name = _RENAMED.get(name, name)

        def function(handle: Any, *arguments: Any) -> Any:
            inspect.signature(original).bind(handle, *arguments)
            answer = self._gpu(handle).answers.get(name, error(pynvml.NVML_ERROR_NOT_SUPPORTED))
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return function

    def _event(self, events: str, timeout_ms: int) -> Any:
        assert (events, timeout_ms) == ("events", 0)
        if not self.events:
            raise error(pynvml.NVML_ERROR_TIMEOUT)
        gpu, xid = self.events.pop(0)
        device = self.handle(self.gpus.index(gpu))
        return SimpleNamespace(device=device, eventType=pynvml.nvmlEventTypeXidCriticalError, eventData=xid)

    def _field_values(self, handle: Any, ids: list[int]) -> Any:
        gpu = self._gpu(handle)
        values = (pynvml.c_nvmlFieldValue_t * len(ids))()
        for value, id in zip(values, ids, strict=True):
            if id in gpu.fields:
                value.valueType, value.value.uiVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, gpu.fields[id]
                if gpu.fields[id] >> 32:
                    value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
                    value.value.ullVal = gpu.fields[id]
            else:
                value.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
        return values

    def _link(self, handle: Any, link: int) -> Any:
        links = self._gpu(handle).nvlinks
        return links[link] if link < len(links) else False

    def _remote_type(self, handle: Any, link: int) -> int:
        switch = self._gpu(handle).nvlinks[link] is None
        return pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if switch else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU

    def _level(self, a: Any, b: Any) -> int:
        pair = (self.gpus.index(self._gpu(a)), self.gpus.index(self._gpu(b)))
        if pair not in self.levels:
            raise error(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.levels[pair]
