"""This machine as a source of snapshots."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import msgspec

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
        self._devices = [(driver, index) for driver in self._drivers.opened for index in driver.indices]
        self._xids: dict[int, tuple[int, ...]] = {}
        self._impossible: Notes = {}
        self._host, self._cpus = HostReader(root, mounts), CpuReader(read_packages(self._files), root)
        self._closed = False
        self._lock = threading.Lock()  # a thread may sample while another discovers anew or closes
        self.node = self.refresh()

    def refresh(self) -> NodeTopology:
        """Read the facts anew."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> NodeTopology:
        node = read_node(self._files, self._drivers)
        devices = tuple(possible_facts(device, self._impossible) for device in node.devices)
        readings = self._device_readings(devices)
        for number, reading in readings.items():  # the driver reports them once; the next snapshot has them
            self._xids[number] = self._xids.get(number, ()) + reading.xids
        devices = tuple(replace(device, reading=readings[device.device_id]) for device in devices)
        missing = (
            node.missing if self._devices else (*node.missing, *self._unread_sensors(devices[0].reading))
        )
        self.node = replace(node, devices=devices, missing=missing)
        self._add_notes()
        return self.node

    def _add_notes(self) -> None:
        """Add to the node's ``missing`` what only readings showed."""
        notes = [note for driver in self._drivers.opened for note in driver.missing]
        new = [note for note in (*notes, *self._impossible.values()) if note not in self.node.missing]
        if new:
            self.node = replace(self.node, missing=(*self.node.missing, *new))

    def _unread_sensors(self, reading: DeviceReading) -> Iterator[Missing]:
        """What is not known of a CPU; virtual machines seldom have sensors."""
        if reading.temperature_c is None:
            yield Missing(what="CPU temperature", why=why_no_temperature(self._files))
        if reading.energy_j is None and self._files.names("sys/class/powercap"):
            yield Missing(what="CPU energy and power", why="energy_uj cannot be read", fix="run as root")
        elif reading.energy_j is None:
            yield Missing(what="CPU energy and power", why="no RAPL counter in /sys/class/powercap")

    def read(self) -> Snapshot:
        """Read everything once.

        Raises:
            RuntimeError: it is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this machine was closed")
            return self._read()

    def _read(self) -> Snapshot:
        readings = self._device_readings(self.node.devices)
        for number, xids in self._xids.items():
            readings[number] = msgspec.structs.replace(readings[number], xids=xids + readings[number].xids)
        self._xids.clear()
        self._add_notes()
        return Snapshot(
            time_s=time.time(),
            devices=readings,
            host=self._host.read(),
        )

    def _device_readings(self, devices: tuple[DeviceInfo, ...]) -> dict[int, DeviceReading]:
        """By id in this node: accelerators, or without any the CPU packages."""
        if self._devices:
            found = {number: driver.read(index) for number, (driver, index) in enumerate(self._devices)}
        else:
            packages = self._cpus.read()
            found = {device.device_id: packages.get(device.index, DeviceReading()) for device in devices}
        return possible_readings(found, {device.device_id: device for device in devices}, self._impossible)

    def close(self) -> None:
        """Close the drivers. May be called again."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._drivers.close()
