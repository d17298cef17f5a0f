"""A stand-in for pynvml with what power limits need: its error classes, milliwatts."""

# ruff: noqa: N801, N802, N818  (the names of pynvml)

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest


class NVMLError(Exception):
    text = "Unknown Error"

    def __str__(self) -> str:
        return self.text


class NVMLError_NoPermission(NVMLError):
    text = "Insufficient Permissions"


class NVMLError_NotFound(NVMLError):
    text = "Not Found"


class NVMLError_NotSupported(NVMLError):
    text = "Not Supported"


class NVMLError_DriverNotLoaded(NVMLError):
    text = "Driver Not Loaded"


class NVMLError_GpuIsLost(NVMLError):
    text = "GPU is lost"


class NVMLError_Uninitialized(NVMLError):
    text = "Uninitialized"


_RANGE_MW = (100_000, 400_000)


class FakePowerNvml(ModuleType):
    """GPUs with a limit of 300 W that may be 100 to 400 W.

    ``limits_mw`` by UUID is what the driver holds; ``before_set`` is called with UUID and milliwatts before a
    limit takes and may raise; ``clamp_mw`` is the most that takes, silently.
    """

    NVMLError = NVMLError
    NVMLError_NoPermission = NVMLError_NoPermission
    NVMLError_NotFound = NVMLError_NotFound
    NVMLError_NotSupported = NVMLError_NotSupported

    def __init__(self, uuids: list[str]) -> None:
        super().__init__("pynvml")
        self.limits_mw = dict.fromkeys(uuids, 300_000)
        self.addresses = {f"0000:{17 + number:02x}:00.0": uuid for number, uuid in enumerate(uuids)}
        self.before_set: Callable[[str, int], None] = lambda uuid, milliwatts: None
        self.clamp_mw = _RANGE_MW[1]
        self.unsupported: set[str] = set()
        self.loaded = True
        self.sessions = 0
        self.sets: list[tuple[str, int]] = []

    def nvmlInit(self) -> None:
        if not self.loaded:
            raise NVMLError_DriverNotLoaded
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self._live()
        self.sessions -= 1

    def _live(self) -> None:
        if self.sessions < 1:
            raise NVMLError_Uninitialized

    def nvmlDeviceGetCount(self) -> int:
        self._live()
        return len(self.limits_mw)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self._live()
        return list(self.limits_mw)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._live()
        if uuid not in self.limits_mw:
            raise NVMLError_NotFound
        return uuid

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:
        self._live()
        if address not in self.addresses:
            raise NVMLError_NotFound
        return self.addresses[address]

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: str) -> list[int]:
        self._live()
        if handle in self.unsupported:
            raise NVMLError_NotSupported
        return list(_RANGE_MW)

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:
        self._live()
        return self.limits_mw[handle]

    def nvmlDeviceSetPowerManagementLimit(self, handle: str, milliwatts: int) -> None:
        self._live()
        assert isinstance(milliwatts, int)
        self.before_set(handle, milliwatts)
        self.limits_mw[handle] = min(milliwatts, self.clamp_mw)
        self.sets.append((handle, milliwatts))


def install(monkeypatch: pytest.MonkeyPatch, uuids: list[str]) -> FakePowerNvml:
    nvml = FakePowerNvml(uuids)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml
