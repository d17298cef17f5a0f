"""The telemetry and the health of one node, together."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

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
        self.latest: Snapshot | None = None
        """The latest snapshot to which the rules were applied."""
        self._health = MachineHealth(self.devices)
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        """Of the owners, and held until the thread has been started or stopped for them."""
        self._owners: list[object] = []
        self._started = False
        self.telemetry.listeners.append(self._take)

    def _take(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._health.update(snapshot)
            self.latest = snapshot

    def start(self, owner: object) -> None:
        """Run the sampling thread, at least until ``owner`` stops it."""
        with self._starting:
            if not any(known is owner for known in self._owners):
                self._owners.append(owner)
            if not self.telemetry.running:
                self._started = True
                self.telemetry.start()

    def stop(self, owner: object) -> None:
        """End the sampling thread, within 100 ms, unless it has another owner or was started elsewhere."""
        with self._starting:
            self._owners = [known for known in self._owners if known is not owner]
            if self._started and not self._owners:
                self._started = False
                self.telemetry.stop()

    def close(self) -> None:
        """End the sampling thread, within 100 ms, whoever wants it."""
        with self._starting:
            self._owners, self._started = [], False
            self.telemetry.stop()

    def now(self) -> Snapshot:
        """The latest snapshot if the thread runs, else a new one; at the end of a trace, its last.

        If the source has not answered for several intervals, a snapshot without readings.

        Raises:
            EndOfTrace: the trace has no snapshot at all.
        """
        telemetry = self.telemetry
        if telemetry.sampling_here:
            return telemetry.sample()
        if telemetry.stale:
            return Snapshot(time_s=time.time() if self.latest is None else self.latest.time_s, devices={})
        if not telemetry.up_to_date or self.latest is None:
            with contextlib.suppress(EndOfTrace):
                return telemetry.sample()
        if self.latest is None:
            raise EndOfTrace("the source has no snapshot")
        return self.latest

    @property
    def thresholds(self) -> Thresholds:
        return self._health.thresholds

    def change_thresholds(self, **thresholds: float) -> None:
        """Replace fields of :attr:`thresholds`, from the next snapshot on."""
        with self._lock:
            self._health.thresholds = replace(self._health.thresholds, **thresholds)

    def reset_device(self, device_id: int) -> None:
        """Forget what was seen of a device that was repaired or reset: unknown until its next reading.

        Raises:
            KeyError: it is not one of the devices.
        """
        with self._lock:
            self._health.reset_device(device_id)

    def health(self) -> dict[str, ComponentHealth]:
        """Health of all components: ``gpu:3``, ``cpu:0``, ``memory``, ``disk:/``, ``nic:eth0``.

        From the readings so far: call :meth:`now` first if the thread does not run. If the source has not
        answered for several intervals all are unknown, except those that had failed.
        """
        with self._lock:
            components = self._health.components()
        if not self.telemetry.stale:
            return components
        age_s = self.telemetry.age_s
        silent = ComponentHealth(
            state=None, reason="no reading so far" if age_s is None else f"no reading for {age_s:.0f} s"
        )
        return {
            name: health if health.state is HealthState.FAILED else silent
            for name, health in components.items()
        }

    def device_health(self) -> dict[int, ComponentHealth]:
        """Health of the devices, by id."""
        components = self.health()
        return {device.device_id: components[device.label] for device in self.devices}

    def states(self) -> dict[int, HealthState | None]:
        """Health state by device id, from a current reading; None: unknown."""
        with contextlib.suppress(EndOfTrace):  # nothing was ever read: all unknown
            self.now()
        return {device_id: health.state for device_id, health in self.device_health().items()}
