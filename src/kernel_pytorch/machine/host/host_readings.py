"""Readings of the host: memory, pressure, network interfaces, space on disks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from ..files import Files
from ..readings import DiskReading, HostReading, NicReading
from .cpu import meminfo_bytes

_NET = "sys/class/net"


class HostReader:
    """Reads the host again and again.

    Which interfaces are read is settled once: those of a device; inside a container, which has none, all but
    the loopback. A bridge or a container's end of a cable comes and goes without anything being broken.

    Args:
        root: folder that holds ``proc`` and ``sys``; mount points are looked up below it.
        mounts: mount points whose space is read; default: :func:`mount_points` of now.
    """

    def __init__(self, root: str = "/", mounts: Iterable[str] | None = None) -> None:
        self._files = Files(root)
        self._mounts = tuple(mount_points(self._files) if mounts is None else mounts)
        interfaces = self._interfaces()
        self._all_interfaces = not any(self._of_a_device(name) for name in interfaces)

    def read(self) -> HostReading:
        files = self._files
        names = [name for name in self._interfaces() if self._all_interfaces or self._of_a_device(name)]
        disks = {mount: reading for mount in self._mounts if (reading := self._disk(mount))}
        return HostReading(
            memory_available_bytes=meminfo_bytes(files.text("proc/meminfo"), "MemAvailable"),
            memory_stall_s=_stall_s(files.text("proc/pressure/memory")),
            cpu_stall_s=_stall_s(files.text("proc/pressure/cpu")),
            oom_kills=_vmstat(files.text("proc/vmstat"), "oom_kill"),
            nics={name: self._nic(name) for name in names},
            disks=disks,
        )

    def _interfaces(self) -> list[str]:
        return [name for name in self._files.names(_NET) if name != "lo" and self._is_interface(name)]

    def _is_interface(self, name: str) -> bool:
        return self._files.exists(f"{_NET}/{name}/operstate")  # not so: bonding_masters, a file

    def _of_a_device(self, name: str) -> bool:
        return self._files.exists(f"{_NET}/{name}/device")

    def _nic(self, name: str) -> NicReading:
        folder = f"{_NET}/{name}"
        carrier = self._files.number(f"{folder}/carrier")  # the kernel refuses it for one that is set down
        down = self._files.text(f"{folder}/operstate") == "down"
        received = self._files.number(f"{folder}/statistics/rx_errors")
        sent = self._files.number(f"{folder}/statistics/tx_errors")
        return NicReading(
            carrier=bool(carrier) if carrier is not None else False if down else None,
            errors=None if received is None or sent is None else received + sent,
        )

    def _disk(self, mount: str) -> DiskReading | None:
        try:
            space = os.statvfs(self._files.path(mount))
        except OSError:
            return None
        size = space.f_frsize
        return DiskReading(total_bytes=space.f_blocks * size, free_bytes=space.f_bavail * size)


def _stall_s(text: str | None) -> float | None:
    """Seconds of the line ``some`` (Linux: Documentation/accounting/psi.rst)."""
    for line in (text or "").splitlines():
        kind, _, total = line.partition(" avg10=")
        if kind == "some" and " total=" in total:
            return int(total.rpartition("total=")[2]) / 1e6
    return None


def _vmstat(text: str | None, key: str) -> int | None:
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return None


def mount_points(files: Files) -> Iterator[str]:
    """Where files are kept: ``/``, file systems on block devices, RAM disks; each file system once.

    Left out: what cannot be written (full from the start), network file systems (asking a dead server hangs),
    the kernel's own. Source: ``/proc/self/mountinfo`` (man 5 proc_pid_mountinfo).
    """
    seen: set[str] = set()
    for line in (files.text("proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        _, _, device, _, escaped, options, *_ = left.split(" ")
        kind, source, *_ = right.split(" ")
        mount = escaped.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        on_block_device = source.startswith("/dev/") and not source.startswith("/dev/loop")
        in_memory = kind == "tmpfs" and not mount.startswith(("/sys/", "/proc/"))
        if device in seen or "ro" in options.split(",") or not (mount == "/" or on_block_device or in_memory):
            continue
        if _is_folder(files, mount):  # containers bind single files: /etc/hosts
            seen.add(device)
            yield mount


def _is_folder(files: Files, mount: str) -> bool:
    try:
        return stat.S_ISDIR(files.path(mount).stat().st_mode)
    except OSError:
        return False
