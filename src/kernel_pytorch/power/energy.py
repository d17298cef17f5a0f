"""Energy that devices used while a block of code ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType

from ..machine.facts import DeviceInfo
from ..machine.known import total
from ..machine.readings import DeviceReading, Snapshot


class EnergyMeter:
    """Joules from entering the context to leaving it; it may be entered again.

    Measured as differences of energy counters (``energy_j`` of a reading): NVML for NVIDIA GPUs since Volta,
    AMD SMI, and RAPL for CPU packages.

    GPUs compute asynchronously: wait for them (``torch.cuda.synchronize()``) before entering and before
    leaving, or other work is included. Counters are updated several times a second: a block
    of a few seconds is measured well, one of milliseconds not at all.

    Args:
        read: takes a reading of all devices: ``telemetry.sample``, or the ``read`` of a source.
        devices: to be measured.
        clock: seconds that never go back, from any start.
    """

    def __init__(
        self,
        read: Callable[[], Snapshot],
        devices: Iterable[DeviceInfo],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._devices, self._clock = read, tuple(devices), clock
        self._before: Snapshot | None = None
        self._before_s = 0.0
        self._failure = ""
        self.joules: dict[int, float | None] = {}
        """By device id; None if not measured, with the reason in ``reasons``."""
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
        self._before, self._before_s = self._take(), self._clock()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        before, after, after_s = self._before, self._take(), self._clock()
        for device in self._devices:
            number = device.device_id
            if before is None or after is None:
                joules, why = None, self._failure
            else:
                joules, why = _difference(_reading(before, number), _reading(after, number))
            self.joules[number] = joules
            if joules is None:
                self.reasons[number] = why
        if before is not None and after is not None:
            self.seconds = after_s - self._before_s

    def _take(self) -> Snapshot | None:
        try:
            return self._read()
        except Exception as error:  # kept as the reason: measuring must not stop the work
            self._failure = f"no reading: {error!r}"
            return None


def _reading(snapshot: Snapshot, device_id: int) -> DeviceReading:
    return snapshot.devices.get(device_id, DeviceReading())


def _difference(before: DeviceReading, after: DeviceReading) -> tuple[float | None, str]:
    """Joules between two readings of a counter, or why there are none."""
    before_j, after_j, age_s = before.energy_j, after.energy_j, max(before.age_s, after.age_s)
    if age_s:
        return None, f"the driver answered late: its last reading was {age_s:.1f} s old"
    if before_j is None or after_j is None:
        return None, "the device has no energy counter, or it may not be read"
    if after_j < before_j:
        return None, f"the energy counter fell from {before_j:g} J to {after_j:g} J: it was reset or wrapped"
    if after_j == before_j:
        return (
            None,
            "the energy counter stood still: the block was shorter than the time between its renewals",
        )
    return after_j - before_j, ""
