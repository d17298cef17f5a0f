"""Energy that devices used while a block of code ran."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from types import TracebackType
from typing import Any

from ..machine.facts import DeviceInfo, HardwareVendor
from ..machine.known import total
from ..machine.readings import DeviceReading, Snapshot

_WINDOW = "kernel_pytorch"


class EnergyMeter:
    """Joules from entering the context to leaving it; it may be entered again.

    Read from the counters in the readings (``energy_j``): on NVIDIA's GPUs since Volta Zeus reads the same.
    Zeus, where it is installed (``pip install zeus``), measures what has none: CPU packages whose counters
    only its daemon may read, and older GPUs, whose power it polls from a process of its own.

    GPUs compute asynchronously: wait for them (``torch.cuda.synchronize()``) before entering and before
    leaving, or work is counted that is not the block's. Counters are renewed several times a second: a block
    of a few seconds is measured well, one of milliseconds not at all.

    Args:
        read: takes a reading of all devices: ``telemetry.sample``, or the ``read`` of a source.
        devices: to be measured.
    """

    def __init__(self, read: Callable[[], Snapshot], devices: Iterable[DeviceInfo]) -> None:
        self._read, self._devices = read, tuple(devices)
        self._zeus: _ZeusWindow | None = None
        self._before: Snapshot | None = None
        self._failure = ""
        self.joules: dict[int, float | None] = {}
        """By device id; None where ``reasons`` tells why it was not measured."""
        self.reasons: dict[int, str] = {}
        self.seconds: float | None = None
        """Between the two readings."""

    @property
    def total_j(self) -> float | None:
        """Of all devices; None if one was not measured."""
        return total(self.joules.values())

    @property
    def power_w(self) -> float | None:
        """Mean draw of all devices; None if one was not measured."""
        return self.total_j / self.seconds if self.total_j is not None and self.seconds else None

    def __enter__(self) -> EnergyMeter:
        self.joules, self.reasons, self.seconds = {}, {}, None
        self._before = self._take()
        if self._zeus is None and self._before is not None:
            before = self._before
            self._zeus = _ZeusWindow([device for device in self._devices if _is_for_zeus(device, before)])
        if self._zeus is not None:
            self._zeus.begin()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        before, after = self._before, self._take()
        found = {} if self._zeus is None else self._zeus.end()
        for device in self._devices:
            number = device.device_id
            if number not in found and before is not None and after is not None:
                found[number] = _difference(_counter(before, number), _counter(after, number))
            self.joules[number], why = found.get(number, (None, self._failure))
            if why is not None:
                self.reasons[number] = why
        if before is not None and after is not None:
            self.seconds = after.time_s - before.time_s

    def _take(self) -> Snapshot | None:
        try:
            return self._read()
        except Exception as error:  # told as the reason: measuring must not stop the work
            self._failure = f"no reading: {error!r}"
            return None


def _counter(snapshot: Snapshot, device_id: int) -> float | None:
    return snapshot.devices.get(device_id, DeviceReading()).energy_j


def _is_for_zeus(device: DeviceInfo, snapshot: Snapshot) -> bool:
    by_zeus = device.kind == "cpu" or device.vendor is HardwareVendor.NVIDIA
    return by_zeus and _counter(snapshot, device.device_id) is None


def _difference(before_j: float | None, after_j: float | None) -> tuple[float | None, str | None]:
    """Joules between two readings of a counter, or why there are none."""
    if before_j is None or after_j is None:
        return None, "the device has no energy counter, or it may not be read"
    if after_j < before_j:
        return None, f"the energy counter fell from {before_j:g} J to {after_j:g} J: it was reset or wrapped"
    if after_j == before_j:
        return (
            None,
            "the energy counter stood still: the block was shorter than the time between its renewals",
        )
    return after_j - before_j, None


class _ZeusWindow:
    """Measures devices with Zeus; nothing where it is not installed.

    Zeus counts the GPUs that CUDA_VISIBLE_DEVICES shows, from 0, and CPU packages as RAPL does.
    """

    def __init__(self, devices: list[DeviceInfo]) -> None:
        self._monitor: Any = None
        self._gpus: dict[int, int] = {}
        self._cpus = {device.device_id: device.index for device in devices if device.kind == "cpu"}
        self._why = ""
        if not devices:
            return
        try:
            zeus_device, zeus_monitor = import_module("zeus.device"), import_module("zeus.monitor")
        except ImportError:
            self._cpus = {}
            return
        gpus = {device.device_id: device.index for device in devices if device.kind == "gpu"}
        try:
            visible = zeus_device.get_gpus().gpus if gpus else ()
            shown = {gpu.gpu_index: number for number, gpu in enumerate(visible)}
            self._gpus = {device_id: shown[index] for device_id, index in gpus.items() if index in shown}
            self._monitor = zeus_monitor.ZeusMonitor(
                gpu_indices=list(self._gpus.values()), cpu_indices=list(self._cpus.values())
            )
        except Exception as error:  # told as the reason, here and below
            self._gpus, self._why = gpus, f"Zeus: {error}"

    def begin(self) -> None:
        if self._monitor is None:
            return
        try:
            self._monitor.begin_window(_WINDOW, sync_execution=False)
        except Exception as error:
            self._monitor, self._why = None, f"Zeus: {error}"

    def end(self) -> dict[int, tuple[float | None, str | None]]:
        """Joules, or why there are none, of the devices that are Zeus's to measure, by device id."""
        gpu_energy: dict[int, float] = {}
        cpu_energy: dict[int, float] = {}
        if self._monitor is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # it warns where it measures 0 J
                    window = self._monitor.end_window(_WINDOW, sync_execution=False)
                gpu_energy, cpu_energy = window.gpu_energy, window.cpu_energy or {}
            except Exception as error:
                self._monitor, self._why = None, f"Zeus: {error}"
        found: dict[int, tuple[float | None, str | None]] = {}
        for indices, energies in ((self._gpus, gpu_energy), (self._cpus, cpu_energy)):
            for device_id, index in indices.items():
                joules = energies.get(index)
                why = self._why or "Zeus measured nothing in this block"
                found[device_id] = (joules, None) if joules else (None, why)
        return found
