"""Health of a machine's components, from readings alone: the same from hardware as from a trace.

Nothing here looks at a clock or a machine: what is said follows from the snapshots, and their own times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...machine.facts import DeviceInfo
from ...machine.readings import Snapshot
from .devices import DeviceHealth
from .evidence import ComponentHealth, Evidence, HealthState
from .host import HostHealth
from .thresholds import Thresholds

__all__ = ["ComponentHealth", "Evidence", "HealthState", "MachineHealth", "Thresholds", "assess"]


class MachineHealth:
    """The rules of devices and host over snapshots that come one by one.

    Args:
        devices: of one node; their ids are those of the snapshots.
        thresholds: from where on a reading tells of a fault.
    """

    def __init__(self, devices: Sequence[DeviceInfo], thresholds: Thresholds | None = None) -> None:
        self._thresholds = thresholds or Thresholds()
        self._devices = DeviceHealth(devices, self._thresholds)
        self._host = HostHealth(self._thresholds)
        self._read_s: float | None = None
        """The time of the last snapshot."""
        self._gap_s: float | None = None
        """Between the two last."""
        self._now = 0.0
        """The same, but for a clock that was set back."""
        self._place = {device.device_id: place for place, device in enumerate(devices)}

    @property
    def thresholds(self) -> Thresholds:
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        """Counts from the next snapshot on; what was seen so far is kept."""
        self._thresholds = self._devices.thresholds = self._host.thresholds = thresholds

    def update(self, snapshot: Snapshot) -> None:
        """Take in the next snapshot. A clock that was set back goes on from where it was.

        Over a minute and 20 times as long as before is a clock set forward, or a suspended machine: nothing
        was seen to hold meanwhile.
        """
        elapsed = 0.0 if self._read_s is None else max(snapshot.time_s - self._read_s, 0.0)
        gap, self._gap_s = self._gap_s, elapsed
        if gap is not None and elapsed > max(60.0, 20 * gap):
            elapsed = gap
        self._now = snapshot.time_s if self._read_s is None else self._now + elapsed
        self._read_s = snapshot.time_s
        self._devices.update(self._now, snapshot)
        self._host.update(self._now, snapshot.host)

    def reset_device(self, device_id: int) -> None:
        """Forget what was seen of a device.

        Raises:
            KeyError: it is not one of the devices.
        """
        self._devices.reset(self._place[device_id])

    def device(self, device_id: int) -> ComponentHealth:
        """Health of a device.

        Raises:
            KeyError: it is not one of the devices.
        """
        return self._devices.health(self._place[device_id])

    def components(self) -> dict[str, ComponentHealth]:
        """All by name: ``gpu:3``, ``cpu:0``, ``memory``, ``cpu``, ``disk:/``, ``nic:eth0``."""
        devices = {
            device.label: self._devices.health(place) for place, device in enumerate(self._devices.devices)
        }
        return devices | self._host.health()


def assess(
    snapshots: Iterable[Snapshot], devices: Sequence[DeviceInfo], thresholds: Thresholds | None = None
) -> dict[str, ComponentHealth]:
    """Health of all components after the last of ``snapshots``, which are in order of time."""
    health = MachineHealth(devices, thresholds)
    for snapshot in snapshots:
        health.update(snapshot)
    return health.components()
