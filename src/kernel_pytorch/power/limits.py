"""Power limits of NVIDIA's GPUs, set for a while and put back."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from ..errors import KernelPytorchError, Unavailable
from ..machine.drivers.guarded import CLOSE_S, OPEN_S
from ..machine.drivers.nvml import Nvml
from ..machine.facts import DeviceInfo, HardwareVendor
from ..machine.worker import NoAnswerError, Worker

_TOLERANCE_MW = 1000
_CALL_S = 5.0
"""How long a call of NVML's may take."""


class PowerLimitError(KernelPytorchError):
    """A limit could not be set or put back."""


class PowerLimits:
    """Limits that hold between :meth:`set` and :meth:`restore`, or within its context.

    The limits before are put back when the context is left in whatever way, when only some could be set, and
    at the interpreter's exit. A process that is killed leaves its limits: ``nvidia-smi -pl`` or a reload of
    the driver changes them then. A limit holds for the whole GPU, whoever computes on it. Only a worker calls
    NVML, which may hang: that is an error, after which :meth:`restore` can be tried again.

    Args:
        devices: the devices that ``limits_w`` speaks of, and maybe others.
        limits_w: watts by device id.

    Raises:
        ValueError: a limit for a device that is not among ``devices``.
        PowerLimitError: a limit for something other than a GPU of NVIDIA's.
    """

    def __init__(self, devices: Iterable[DeviceInfo], limits_w: Mapping[int, float]) -> None:
        known = {device.device_id: device for device in devices}
        for device_id in limits_w:
            if device_id not in known:
                raise ValueError(f"limits_w must name devices among {sorted(known)}, got {device_id}")
            device = known[device_id]
            if device.kind != "gpu" or device.vendor is not HardwareVendor.NVIDIA:
                raise PowerLimitError(
                    f"{device.label} ({device.name}) is no GPU of NVIDIA's",
                    "set its limit with the vendor's own tool",
                )
        self.asked_w = dict(limits_w)
        self.set_w: dict[int, float] = {}
        """The limits as read back from the driver; empty while none is set."""
        self.former_w: dict[int, float] = {}
        """The limits that :meth:`restore` puts back; empty while none is set."""
        self._devices = {device_id: known[device_id] for device_id in limits_w}
        self._open: tuple[Nvml, Worker] | None = None
        self._handles: dict[int, Any] = {}
        self._lock = threading.RLock()

    def set(self) -> None:
        """Set all limits, or none.

        Raises:
            ValueError: a limit that the device does not allow.
            PowerLimitError: no driver, no permission, a device of another machine, or a limit that did not
                take; all limits are as before, unless it says otherwise.
        """
        with self._lock:
            if self._open is not None:
                raise ValueError("these limits are set already; restore() comes first")
            worker = Worker("NVML")
            try:
                self._open = worker.call(Nvml, OPEN_S), worker
            except Unavailable as error:
                raise PowerLimitError(error.why, error.fix) from error
            atexit.register(self.restore)
            try:
                for device_id in self.asked_w:
                    self._find(device_id)
                for device_id, watts in self.asked_w.items():
                    self.former_w[device_id] = self._read(device_id)
                    self._write(device_id, watts)
                    self.set_w[device_id] = self._read(device_id)
            except BaseException:
                self.restore()
                raise

    def restore(self) -> None:
        """Put the former limits back; nothing if none is set.

        Raises:
            PowerLimitError: names the devices that did not get their former limit; call again to try again.
        """
        with self._lock:
            if self._open is None:
                return
            nvml, worker = self._open
            failures = {}
            for device_id, watts in self.former_w.items():
                try:
                    self._write(device_id, watts)
                except PowerLimitError as error:
                    failures[device_id] = f"{error.why}, former limit {watts:g} W"
            self.set_w = {
                device_id: watts for device_id, watts in self.set_w.items() if device_id in failures
            }
            self.former_w = {device_id: self.former_w[device_id] for device_id in failures}
            if failures:
                raise PowerLimitError(
                    f"not put back: {'; '.join(failures.values())}", "nvidia-smi -i GPU -pl WATTS"
                )
            worker.wait(worker.submit(nvml.close), CLOSE_S)
            self._open = None
            atexit.unregister(self.restore)

    def __enter__(self) -> PowerLimits:
        self.set()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    def _find(self, device_id: int) -> None:
        """Get NVML's handle and check the range."""
        device, watts = self._devices[device_id], self.asked_w[device_id]
        if device.uuid is not None:
            handle = self._call(device, "nvmlDeviceGetHandleByUUID", device.uuid)
        elif device.pci is not None:
            handle = self._call(device, "nvmlDeviceGetHandleByPciBusId", device.pci.address)
        else:
            raise PowerLimitError(f"{device.label} has no UUID or PCI address", "discover the topology anew")
        self._handles[device_id] = handle
        least, most = self._call(device, "nvmlDeviceGetPowerManagementLimitConstraints", handle)
        if not least <= round(watts * 1000) <= most:
            allowed = f"{least / 1000:g} to {most / 1000:g} W"
            raise ValueError(f"power limit of {device.label} must be within {allowed}, got {watts:g}")

    def _read(self, device_id: int) -> float:
        device, handle = self._devices[device_id], self._handles[device_id]
        return float(self._call(device, "nvmlDeviceGetPowerManagementLimit", handle)) / 1000

    def _write(self, device_id: int, watts: float) -> None:
        """Set a limit, unless it is so already, and check that it took."""
        device, milliwatts = self._devices[device_id], round(watts * 1000)
        if round(self._read(device_id) * 1000) != milliwatts:
            self._call(device, "nvmlDeviceSetPowerManagementLimit", self._handles[device_id], milliwatts)
        now_w = self._read(device_id)
        if abs(now_w * 1000 - milliwatts) > _TOLERANCE_MW:
            raise PowerLimitError(
                f"power limit of {device.label}: {now_w:g} W after {watts:g} W were set",
                "see nvidia-smi -q -d POWER",
            )

    def _call(self, device: DeviceInfo, function: str, *arguments: Any) -> Any:
        assert self._open is not None
        nvml, worker = self._open
        api = nvml.api
        try:
            return worker.call(lambda: getattr(api, function)(*arguments), _CALL_S)
        except NoAnswerError as error:
            raise PowerLimitError(f"power limit of {device.label}: {error.why}", error.fix) from error
        except api.NVMLError_NoPermission as error:
            raise PowerLimitError(
                f"power limit of {device.label}: not permitted", "run as root, or let an administrator set it"
            ) from error
        except api.NVMLError_NotFound as error:
            raise PowerLimitError(
                f"power limit of {device.label}: not a GPU of this machine",
                "set it on the machine that has it",
            ) from error
        except api.NVMLError_NotSupported as error:
            raise PowerLimitError(
                f"power limit of {device.label}: {device.name} does not support it", "leave this GPU out"
            ) from error
        except api.NVMLError as error:
            raise PowerLimitError(f"power limit of {device.label}: {error}", "see nvidia-smi") from error
