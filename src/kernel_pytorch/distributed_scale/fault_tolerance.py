"""Health of the devices and the host, watched."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..machine.facts import DeviceInfo
from ..machine.readings import Snapshot
from ..watch.health import ComponentHealth, HealthState, MachineHealth, Thresholds
from ..watch.health.performance import performance_of
from ..watch.telemetry import EndOfTrace

if TYPE_CHECKING:
    from .hardware_discovery import HardwareTopologyManager

__all__ = ["HardwareHealthMonitor", "HealthState", "Thresholds"]

_OTHER_NODE = ComponentHealth(state=None, reason="it is in another node, which watches it itself")


class HardwareHealthMonitor:
    """Applies the rules of :mod:`kernel_pytorch.watch.health` to the manager's readings.

    Args:
        topology_manager: whose telemetry is listened to.
        enable_monitoring: start at once. While nothing watches, each question takes a reading first.
    """

    def __init__(self, topology_manager: HardwareTopologyManager, enable_monitoring: bool = True) -> None:
        self._manager = topology_manager
        self._health = MachineHealth([])
        self._ids: tuple[int, ...] = ()
        self._identities: list[tuple[object, ...]] = []
        self._last: Snapshot | None = None
        self._lock = threading.Lock()
        self._started_telemetry = False
        topology_manager.health = lambda: self.states
        if enable_monitoring:
            self.start_monitoring()

    def start_monitoring(self) -> None:
        """Listen to the telemetry, whose thread is started if it does not run."""
        telemetry = self._manager.telemetry
        if self._listen not in telemetry.listeners:
            telemetry.listeners.append(self._listen)
        if not telemetry.running:
            telemetry.start()
            self._started_telemetry = True

    def stop_monitoring(self) -> None:
        """Stop listening, within 100 ms. The telemetry's thread ends if this monitor started it."""
        telemetry = self._manager.telemetry
        if self._listen in telemetry.listeners:
            telemetry.listeners.remove(self._listen)
        if self._started_telemetry:
            telemetry.stop()
            self._started_telemetry = False

    def _listen(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._current().update(snapshot)
            self._last = snapshot

    def _catch_up(self) -> None:
        """Where the telemetry's thread has not told of readings, take one."""
        telemetry = self._manager.telemetry
        if not (telemetry.running and self._listen in telemetry.listeners and self._last is not None):
            with contextlib.suppress(EndOfTrace):  # what has been read remains
                snapshot = telemetry.sample()
                if self._listen not in telemetry.listeners:
                    self._listen(snapshot)

    def _current(self) -> MachineHealth:
        """The rules, under the ids that the devices have now; anew if they are other devices."""
        ids = self._manager.telemetry.history.device_ids
        if ids != self._ids:
            known = self._devices()
            devices = [known[number] for number in ids]
            if [_identity(device) for device in devices] == self._identities:
                self._health.number_anew(devices)
            else:
                self._health = MachineHealth(devices, self._health.thresholds)
                self._identities = [_identity(device) for device in devices]
            self._ids, self._last = ids, None
        return self._health

    def _devices(self) -> dict[int, DeviceInfo]:
        """Those of all nodes by id."""
        return {device.device_id: device for device in self._manager.cluster_topology.devices}

    @property
    def states(self) -> Mapping[int, HealthState | None]:
        """By device id; None: unknown."""
        self._catch_up()
        with self._lock:
            return {number: self._device(number).state for number in self._devices()}

    def get_device_health_status(self, device_id: int | None = None) -> dict[str, Any]:
        """Health of a device, or of all and of the host.

        Returns:
            Of a device: ``device_id``, ``status`` ("healthy", "degraded", "failed", None: unknown),
            ``last_check`` (seconds since 1970), ``evidence``, ``unchecked`` and ``reason``.
            Without one: ``timestamp``, ``total_devices``, ``healthy_devices``, ``degraded_devices``,
            ``failed_devices``, ``unknown_devices``, ``device_details`` (status by id) and ``components``
            (``gpu:0``, ``memory``, ``disk:/``, ``nic:eth0`` and so on, each with status, evidence, unchecked
            and reason); ``error``: why the thread's last sample failed, then ``timestamp`` stands still.

        Raises:
            ValueError: no such device.
        """
        if device_id is not None:
            self._check(device_id)
        self._catch_up()
        with self._lock:
            last_check = None if self._last is None else self._last.time_s
            if device_id is not None:
                health = self._device(device_id)
                return {"device_id": device_id, "last_check": last_check, **_as_dict(health)}
            details = {number: _name(self._device(number).state) for number in self._devices()}
            components = {name: _as_dict(health) for name, health in self._current().components().items()}
        counts, error = list(details.values()), self._manager.telemetry.error
        return {
            "timestamp": last_check,
            "total_devices": len(details),
            **{f"{state.value}_devices": counts.count(state.value) for state in HealthState},
            "unknown_devices": counts.count(None),
            "device_details": details,
            "components": components,
            "error": None if error is None else repr(error),
        }

    def get_performance_report(self, device_id: int | None = None, hours: float = 1) -> dict[str, Any]:
        """Temperature, utilization and power of the last ``hours`` that the history has.

        Returns:
            Of a device: :func:`.performance_of` and ``health_status``. Without one: ``timestamp``, ``hours``
            and ``devices``, such a report by id.

        Raises:
            ValueError: no such device, or ``hours`` is not positive.
        """
        if device_id is not None:
            self._check(device_id)
        if hours <= 0:
            raise ValueError(f"hours must be positive, got {hours}")
        states, history = self.states, self._manager.telemetry.history
        reports = {
            number: {
                "device_id": number,
                **performance_of(history, number, hours),
                "health_status": _name(state),
            }
            for number, state in states.items()
            if device_id in (None, number)
        }
        if device_id is not None:
            return reports[device_id]
        return {"timestamp": time.time(), "hours": hours, "devices": reports}

    def reset_device_health(self, device_id: int) -> None:
        """Forget what was seen of a device that was repaired or reset: it is unknown until its next reading.

        Raises:
            ValueError: no such device, or it is in another node.
        """
        self._check(device_id)
        with self._lock:
            try:
                self._current().reset_device(device_id)
            except KeyError:
                raise ValueError(f"device_id {device_id}: {_OTHER_NODE.reason}") from None

    def set_error_thresholds(self, **thresholds: float) -> None:
        """Change fields of :class:`.Thresholds`; ``temperature`` is an older name of ``temperature_c``.

        Raises:
            ValueError: a name that is not one of them, or a value out of range.
            TypeError: a value that is not a number.
        """
        if "temperature" in thresholds:
            if "temperature_c" in thresholds:
                raise ValueError("temperature is an older name of temperature_c: give one of them")
            thresholds["temperature_c"] = thresholds.pop("temperature")
        unknown = [name for name in thresholds if name not in Thresholds.names()]
        if unknown:
            raise ValueError(f"no threshold {', '.join(unknown)}; there are {', '.join(Thresholds.names())}")
        with self._lock:
            self._health.thresholds = replace(self._health.thresholds, **thresholds)

    @property
    def thresholds(self) -> Thresholds:
        return self._health.thresholds

    def _device(self, device_id: int) -> ComponentHealth:
        health = self._current()
        return health.device(device_id) if health.has(device_id) else _OTHER_NODE

    def _check(self, device_id: int) -> None:
        known = self._devices()
        if device_id not in known:
            raise ValueError(f"device_id must be one of {sorted(known)}, got {device_id}")


def _identity(device: DeviceInfo) -> tuple[object, ...]:
    """What a device of this node keeps when it is numbered anew."""
    return device.kind, device.vendor, device.index, device.uuid


def _name(state: HealthState | None) -> str | None:
    return None if state is None else state.value


def _as_dict(health: ComponentHealth) -> dict[str, Any]:
    return {
        "status": _name(health.state),
        "evidence": [asdict(item) | {"state": item.state.value} for item in health.evidence],
        "unchecked": list(health.unchecked),
        "reason": health.reason,
    }
