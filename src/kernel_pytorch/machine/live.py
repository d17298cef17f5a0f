"""This machine as a source of snapshots."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from .discover import open_drivers, read_node
from .facts import DeviceInfo, Missing, NodeTopology
from .files import Files
from .host.cpu import read_packages
from .host.cpu_readings import CpuReader
from .host.cpu_sensors import why_no_temperature
from .host.host_readings import HostReader
from .possible import Notes, possible_facts, possible_readings
from .readings import DeviceReading, Snapshot


class Machine:
    """Facts and readings of this machine. Its drivers stay open until :meth:`close`.

    Args:
        root: folder that holds ``proc`` and ``sys``.
        mounts: mount points whose space is read; by default those of block devices and of RAM disks.
        load_torch: whether torch may be imported for GPUs that only it can read.
    """

    def __init__(
        self, root: str = "/", *, mounts: Iterable[str] | None = None, load_torch: bool = True
    ) -> None:
        self._files = Files(root)
        self._drivers = open_drivers(self._files, load_torch=load_torch)
        self._impossible: Notes = {}
        self._host, self._cpus = HostReader(root, mounts), CpuReader(read_packages(self._files), root)
        self._closed = threading.Lock()  # taken by the first that closes
        self._lock = threading.Lock()  # of the readers of host and CPUs; never held while a driver is asked
        self.node = self._read_node()

    def refresh(self) -> NodeTopology:
        """Read the facts again."""
        for driver in self._drivers.opened:
            driver.refresh()
        self.node = self._read_node()
        return self.node

    def _read_node(self) -> NodeTopology:
        asked_s = self._ask()
        node = read_node(self._files, self._drivers)
        devices = tuple(possible_facts(device, self._impossible) for device in node.devices)
        readings = self._device_readings(devices, asked_s, take_xids=False)
        devices = tuple(replace(device, reading=readings[device.device_id]) for device in devices)
        missing = [*node.missing, *filter(None, (driver.unanswered for driver in self._drivers.opened))]
        if devices[0].kind == "cpu":
            missing += self._unread_sensors(devices[0].reading)
        return self._with_notes(replace(node, devices=devices, missing=tuple(missing)))

    def _with_notes(self, node: NodeTopology) -> NodeTopology:
        """The node with notes about what only readings showed."""
        notes = [*chain(*(driver.noted for driver in self._drivers.opened)), *self._impossible.values()]
        new = [note for note in notes if note not in node.missing]
        return replace(node, missing=(*node.missing, *new)) if new else node

    def _unread_sensors(self, reading: DeviceReading) -> Iterator[Missing]:
        """What is not known of a CPU; virtual machines seldom have sensors."""
        if reading.temperature_c is None:
            yield Missing(what="CPU temperature", why=why_no_temperature(self._files))
        if reading.energy_j is None and self._files.names("sys/class/powercap"):
            yield Missing(what="CPU energy and power", why="energy_uj cannot be read", fix="run as root")
        elif reading.energy_j is None:
            yield Missing(what="CPU energy and power", why="no RAPL counter in /sys/class/powercap")

    def read(self) -> Snapshot:
        """Read everything once. Devices of a driver that does not answer are silent; nothing waits for it.

        Raises:
            RuntimeError: it is closed.
        """
        if self._closed.locked():
            raise RuntimeError("this machine was closed")
        asked_s = self._ask()
        with self._lock:
            host = self._host.read()
        devices = self._device_readings(self.node.devices, asked_s, take_xids=True)
        self.node = self._with_notes(self.node)
        return Snapshot(time_s=time.time(), devices=devices, host=host)

    def _ask(self) -> float:
        """Let all drivers read their devices. Returns the monotonic time."""
        asked_s = time.monotonic()
        for driver in self._drivers.opened:
            driver.ask()
        return asked_s

    def _device_readings(
        self, devices: tuple[DeviceInfo, ...], asked_s: float, *, take_xids: bool
    ) -> dict[int, DeviceReading]:
        """By id in this node: accelerators, or without any the CPU packages."""
        if devices[0].kind == "gpu":
            drivers = self._drivers.opened
            found = dict(
                enumerate(chain(*(driver.readings(asked_s, take_xids=take_xids) for driver in drivers)))
            )
        else:
            with self._lock:
                packages = self._cpus.read()
            found = {device.device_id: packages.get(device.index, DeviceReading()) for device in devices}
        return possible_readings(found, {device.device_id: device for device in devices}, self._impossible)

    def close(self) -> None:
        """Close the drivers; one that hangs is left to the end of the process. May be called again."""
        if self._closed.acquire(blocking=False):
            self._drivers.close()
