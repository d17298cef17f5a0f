"""The telemetry and the health of one node, together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from ..machine.facts import DeviceInfo
from ..machine.readings import Snapshot
from .health import ComponentHealth, HealthState, MachineHealth, Thresholds
from .telemetry import EndOfTrace, Source, Telemetry


class NodeWatch:
    """Samples the devices of a node and applies the health rules to every snapshot.

    Any thread may call it. Users of the sampling thread call :meth:`start` with themselves as the owner; it
    runs until the last owner has called :meth:`stop`.

    Args:
        devices: of one node; their ids are those of the source's snapshots, and never change.
        source: of the readings.
        interval_s: seconds between samples of the thread.
    """

    def __init__(self, devices: Sequence[DeviceInfo], source: Source, *, interval_s: float = 1.0) -> None:
        self.devices = tuple(devices)
        self.telemetry = Telemetry(
            source, [device.device_id for device in self.devices], interval_s=interval_s
        )
        self._health = MachineHealth(self.devices)
        self._lock = threading.Lock()
        self._owners: list[object] = []
        self._started = False
        self.telemetry.listeners.append(self._take)

    def _take(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._health.update(snapshot)

    def start(self, owner: object) -> None:
        """Run the sampling thread, at least until ``owner`` stops it."""
        with self._lock:
            if not any(known is owner for known in self._owners):
                self._owners.append(owner)
            if not self.telemetry.running:
                self._started = True
                self.telemetry.start()

    def stop(self, owner: object) -> None:
        """End the sampling thread, within 100 ms, unless it has another owner or was started elsewhere."""
        with self._lock:
            self._owners = [known for known in self._owners if known is not owner]
            to_stop = self._started and not self._owners
            self._started = self._started and not to_stop
        if to_stop:
            self.telemetry.stop()

    def now(self) -> Snapshot:
        """The latest snapshot if the thread runs, else a new one; at the end of a trace, its last.

        If the thread has taken none for several intervals, a snapshot without readings.

        Raises:
            EndOfTrace: the trace has no snapshot at all.
        """
        latest = self.telemetry.latest
        if latest is None or not (self.telemetry.running or self.telemetry.sampling):
            with contextlib.suppress(EndOfTrace):
                return self.telemetry.sample()
            latest = self.telemetry.latest
            if latest is None:
                raise EndOfTrace("the source has no snapshot")
        return Snapshot(time_s=latest.time_s, devices={}) if self.telemetry.stale else latest

    @property
    def thresholds(self) -> Thresholds:
        return self._health.thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        with self._lock:
            self._health.thresholds = thresholds

    def reset_device(self, device_id: int) -> None:
        """Forget what was seen of a device that was repaired or reset: unknown until its next reading.

        Raises:
            KeyError: it is not one of the devices.
        """
        with self._lock:
            self._health.reset_device(device_id)

    def health(self) -> dict[str, ComponentHealth]:
        """Health of all components: ``gpu:3``, ``cpu:0``, ``memory``, ``disk:/``, ``nic:eth0``.

        From the readings so far: call :meth:`now` first if the thread does not run.
        """
        with self._lock:
            components = self._health.components()
        if not self.telemetry.stale:
            return components
        silent = ComponentHealth(state=None, reason=f"no reading for {self.telemetry.age_s:.0f} s")
        return dict.fromkeys(components, silent)

    def device_health(self) -> dict[int, ComponentHealth]:
        """Health of the devices, by id."""
        components = self.health()
        return {device.device_id: components[device.label] for device in self.devices}

    def states(self) -> dict[int, HealthState | None]:
        """Health state by device id, from a current reading; None: unknown."""
        with contextlib.suppress(EndOfTrace):  # nothing was ever read: all unknown
            self.now()
        return {device_id: health.state for device_id, health in self.device_health().items()}
