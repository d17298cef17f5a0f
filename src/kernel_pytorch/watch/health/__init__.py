"""Health of a machine's components, from readings alone: the same from hardware as from a trace.

Nothing here reads a clock or a machine: verdicts follow from the snapshots and their time stamps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...machine.facts import DeviceInfo
from ...machine.readings import Snapshot
from ..steady_clock import SteadyClock
from .devices import DeviceHealth
from .evidence import ComponentHealth, Evidence, HealthState, severity
from .host import HostHealth
from .thresholds import Thresholds

__all__ = ["ComponentHealth", "Evidence", "HealthState", "MachineHealth", "Thresholds", "assess", "severity"]


class MachineHealth:
    """Applies the rules of devices and host to snapshots, one by one.

    Args:
        devices: of one node; their ids are those of the snapshots.
        thresholds: at or above which a reading counts as a fault.
    """

    def __init__(self, devices: Sequence[DeviceInfo], thresholds: Thresholds | None = None) -> None:
        thresholds = thresholds or Thresholds()
        self._devices = DeviceHealth(devices, thresholds)
        self._host = HostHealth(thresholds)
        self._clock = SteadyClock()
        self._index = {device.device_id: index for index, device in enumerate(devices)}

    @property
    def thresholds(self) -> Thresholds:
        return self._host.thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        """Takes effect with the next snapshot; what was seen so far is kept."""
        self._devices.thresholds = self._host.thresholds = thresholds

    def update(self, snapshot: Snapshot) -> None:
        """Take in the next snapshot. Jumps of its clock are ignored (:class:`.SteadyClock`)."""
        now = self._clock.update(snapshot.time_s)
        self._devices.update(now, snapshot)
        self._host.update(now, snapshot.host)

    def reset_device(self, device_id: int) -> None:
        """Forget what was seen of a device.

        Raises:
            KeyError: it is not one of the devices.
        """
        self._devices.reset(self._index[device_id])

    def device(self, device_id: int) -> ComponentHealth:
        """Health of a device.

        Raises:
            KeyError: it is not one of the devices.
        """
        return self._stamped(self._devices.health(self._index[device_id]))

    def components(self) -> dict[str, ComponentHealth]:
        """Health by component: ``gpu:3``, ``cpu:0``, ``memory``, ``cpu``, ``disk:/``, ``nic:eth0``."""
        devices = {
            device.label: self._devices.health(index) for index, device in enumerate(self._devices.devices)
        }
        return {name: self._stamped(health) for name, health in (devices | self._host.health()).items()}

    def _stamped(self, health: ComponentHealth) -> ComponentHealth:
        """``health`` with its times converted from steady seconds to the clock of the last snapshot."""
        skipped_s = self._clock.skipped_s
        if not skipped_s or not health.evidence:
            return health
        moved = (replace(item, since_s=item.since_s + skipped_s) for item in health.evidence)
        return replace(health, evidence=tuple(moved))


def assess(
    snapshots: Iterable[Snapshot], devices: Sequence[DeviceInfo], thresholds: Thresholds | None = None
) -> dict[str, ComponentHealth]:
    """Health of all components after the last of ``snapshots``, which are in order of time."""
    health = MachineHealth(devices, thresholds)
    for snapshot in snapshots:
        health.update(snapshot)
    return health.components()
