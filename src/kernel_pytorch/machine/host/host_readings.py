"""Readings of the host: memory, pressure, network interfaces, disk space."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from ..files import Files, in_line, printable, whole
from ..known import total
from ..readings import DiskReading, HostReading, NicReading
from ..worker import Rounds, Worker
from .cpu import meminfo_bytes
from .limits import own_groups
from .mounts import mount_points
from .network import NET, RDMA, adapter_has_carrier, adapter_ports, has_carrier, lone_adapters

_PCI_FUNCTION = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_RDMA_ERRORS = ("symbol_error", "port_rcv_errors", "port_xmit_discards")


class HostReader:
    """Reads the host.

    Interfaces are read if they belong to a device: bridges and the ends of virtual cables come and go without
    a fault. If there is none at first, as in a container, all but the loopback are read.

    Disks are read on a worker thread: if one hangs, it and those after it are left out; nothing else waits.

    Args:
        root: folder that holds ``proc`` and ``sys``; mount points are looked up below it.
        mounts: mount points whose space is read; default: :func:`mount_points` at the first reading.
    """

    def __init__(self, root: str = "/", mounts: Iterable[str] | None = None) -> None:
        self._files = Files(root)
        self._mounts = None if mounts is None else tuple(mounts)
        self._disks = None if self._mounts == () else Rounds(Worker("disks"), self._mount_points, self._disk)
        self._memory_groups = own_groups(self._files, "memory")
        interfaces = self._interfaces()
        self._all_interfaces = not any(self._has_device(name) for name in interfaces)
        self._pci_functions: dict[str, Path | None] = {}
        """The physical PCI function, if any, of each interface and adapter read so far."""

    def read(self) -> HostReading:
        """One reading."""
        files, asked_s = self._files, time.monotonic()
        if self._disks is not None:
            self._disks.ask()
        names = [name for name in self._interfaces() if self._all_interfaces or self._has_device(name)]
        nics = {name: self._nic(name) for name in names} | self._adapters()
        return HostReading(
            memory_available_bytes=meminfo_bytes(files.text("proc/meminfo"), "MemAvailable"),
            memory_stall_s=self._memory_stall_s(),
            cpu_stall_s=_stall_s(files.text("proc/pressure/cpu")),
            oom_kills=self._oom_kills(),
            nics={printable(name): nic for name, nic in (nics | self._fallen_off(nics)).items()},
            disks={} if self._disks is None else self._read_disks(self._disks, asked_s),
        )

    def _mount_points(self) -> tuple[str, ...]:
        if self._mounts is None:
            self._mounts = tuple(mount_points(self._files))
        return self._mounts

    @staticmethod
    def _read_disks(disks: Rounds[str, DiskReading | None], asked_s: float) -> dict[str, DiskReading]:
        return {mount: disk for mount, (_, disk) in disks.latest(asked_s).items() if disk is not None}

    def _fallen_off(self, present: dict[str, NicReading]) -> dict[str, NicReading]:
        """Interfaces and adapters of earlier readings whose PCI function has left the bus.

        An interface that was renamed, deleted or moved to a container leaves its PCI function on the bus, and
        virtual functions are added and removed by configuration: none of these is a fault.
        """
        known = self._pci_functions
        known |= {name: self._pci_function(name) for name in present if name not in known}
        for name in known.keys() - present:
            function = known[name]
            if function is None or function.exists():
                del known[name]
        return {name: NicReading(carrier=False, fell_off=True) for name in sorted(known.keys() - present)}

    def _pci_function(self, name: str) -> Path | None:
        """The physical function of an interface or adapter, in sysfs; None if it has none."""
        for top in (NET, RDMA):
            device = Path(os.path.realpath(self._files.path(f"{top}/{name}/device")))
            for folder in (device, *device.parents):
                if _PCI_FUNCTION.fullmatch(folder.name):
                    return None if (folder / "physfn").exists() else folder
        return None

    def _oom_kills(self) -> int | None:
        events = self._group_file("memory.events", "memory.oom_control")  # cgroup v2 and v1
        return whole(in_line(self._files.text(events or "proc/vmstat"), r"oom_kill (\d+)"))

    def _memory_stall_s(self) -> float | None:
        return _stall_s(self._files.text(self._group_file("memory.pressure") or "proc/pressure/memory"))

    def _group_file(self, *names: str) -> str | None:
        """The first of these files that exists in this process's memory control group; None if none does."""
        paths = (f"{group}/{name}" for group in self._memory_groups for name in names)
        return next(filter(self._files.exists, paths), None)

    def _adapters(self) -> dict[str, NicReading]:
        """RDMA adapters without an interface, by name; errors are those of all ports."""
        files = self._files
        return {
            name: NicReading(
                carrier=adapter_has_carrier(files, name),
                errors=total(
                    files.count(f"{port}/counters/{counter}")
                    for port in adapter_ports(files, name).values()
                    for counter in _RDMA_ERRORS
                ),
            )
            for name in lone_adapters(files)
        }

    def _interfaces(self) -> list[str]:
        return [name for name in self._files.names(NET) if name != "lo" and self._is_interface(name)]

    def _is_interface(self, name: str) -> bool:
        """False for ``bonding_masters``, a file, and for bridges, whose carrier depends on their members."""
        folder = f"{NET}/{name}"
        return self._files.exists(f"{folder}/operstate") and not self._files.exists(f"{folder}/bridge")

    def _has_device(self, name: str) -> bool:
        return self._files.exists(f"{NET}/{name}/device")

    def _nic(self, name: str) -> NicReading:
        errors = (self._files.count(f"{NET}/{name}/statistics/{which}_errors") for which in ("rx", "tx"))
        return NicReading(carrier=has_carrier(self._files, name), errors=total(errors))

    def _disk(self, mount: str) -> DiskReading | None:
        try:
            space = os.statvfs(self._files.path(mount))
        except (OSError, ValueError):
            return None
        size = space.f_frsize
        return DiskReading(total_bytes=space.f_blocks * size, free_bytes=space.f_bavail * size)


def _stall_s(text: str | None) -> float | None:
    """Total of the line ``some`` in seconds (Linux: Documentation/accounting/psi.rst)."""
    microseconds = whole(in_line(text, r"some avg10=.* total=(\d+)"))
    return None if microseconds is None else microseconds / 1e6
