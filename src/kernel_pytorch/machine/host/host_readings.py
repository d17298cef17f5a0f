"""Readings of the host: memory, pressure, network interfaces, space on disks."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator

from ..files import Files
from ..readings import DiskReading, HostReading, NicReading
from ..worker import Rounds, Worker
from .cpu import meminfo_bytes
from .limits import own_groups

_NET = "sys/class/net"
_RDMA = "sys/class/infiniband"
_RDMA_ERRORS = ("symbol_error", "port_rcv_errors", "port_xmit_discards")


class HostReader:
    """Reads the host again and again.

    Which interfaces are read is settled once: those of a device; inside a container, which has none, all but
    the loopback. A bridge or a container's end of a cable comes and goes without anything being broken.

    Disks are asked on a worker: one that hangs leaves out itself and those after it, and nothing else.

    Args:
        root: folder that holds ``proc`` and ``sys``; mount points are looked up below it.
        mounts: mount points whose space is read; default: :func:`mount_points` of the first reading.
    """

    def __init__(self, root: str = "/", mounts: Iterable[str] | None = None) -> None:
        self._files = Files(root)
        self._mounts = None if mounts is None else tuple(mounts)
        self._disks = None if self._mounts == () else Rounds(Worker("disks"), self._mount_points, self._disk)
        self._memory_groups = own_groups(self._files, "memory")
        interfaces = self._interfaces()
        self._all_interfaces = not any(self._of_a_device(name) for name in interfaces)

    def read(self) -> HostReading:
        files, asked_s = self._files, time.monotonic()
        if self._disks is not None:
            self._disks.ask()
        names = [name for name in self._interfaces() if self._all_interfaces or self._of_a_device(name)]
        return HostReading(
            memory_available_bytes=meminfo_bytes(files.text("proc/meminfo"), "MemAvailable"),
            memory_stall_s=self._memory_stall_s(),
            cpu_stall_s=_stall_s(files.text("proc/pressure/cpu")),
            oom_kills=self._oom_kills(),
            nics={name: self._nic(name) for name in names} | self._adapters(),
            disks={} if self._disks is None else self._read_disks(self._disks, asked_s),
        )

    def _mount_points(self) -> tuple[str, ...]:
        if self._mounts is None:
            self._mounts = tuple(mount_points(self._files))
        return self._mounts

    @staticmethod
    def _read_disks(disks: Rounds[str, DiskReading | None], asked_s: float) -> dict[str, DiskReading]:
        return {mount: disk for mount, (_, disk) in disks.latest(asked_s).items() if disk is not None}

    def _oom_kills(self) -> int | None:
        """In this process's control group where it has one; else on the host."""
        for group in self._memory_groups:
            for name in ("memory.events", "memory.oom_control"):  # of cgroup v2 and v1
                kills = _entry(self._files.text(f"{group}/{name}"), "oom_kill")
                if kills is not None:
                    return kills
        return _entry(self._files.text("proc/vmstat"), "oom_kill")

    def _memory_stall_s(self) -> float | None:
        for group in self._memory_groups:
            stalled_s = _stall_s(self._files.text(f"{group}/memory.pressure"))
            if stalled_s is not None:
                return stalled_s
        return _stall_s(self._files.text("proc/pressure/memory"))

    def _adapters(self) -> dict[str, NicReading]:
        """RDMA adapters without an interface of their own, by name, with the errors of all their ports."""
        found = {}
        for name in self._files.names(_RDMA):
            if not self._files.names(f"{_RDMA}/{name}/device/net"):
                ports = [
                    f"{_RDMA}/{name}/ports/{port}"
                    for port in self._files.numbered(f"{_RDMA}/{name}/ports", "")
                ]
                states = [self._files.text(f"{port}/state") for port in ports]
                counts = [self._files.number(f"{port}/counters/{c}") for port in ports for c in _RDMA_ERRORS]
                known = [count for count in counts if count is not None]
                found[name] = NicReading(
                    carrier=None
                    if None in states or not states
                    else any(s.startswith("4:") for s in states if s),
                    errors=sum(known) if known and len(known) == len(counts) else None,
                )
        return found

    def _interfaces(self) -> list[str]:
        return [name for name in self._files.names(_NET) if name != "lo" and self._is_interface(name)]

    def _is_interface(self, name: str) -> bool:
        """Not ``bonding_masters``, a file; nor a bridge, whose carrier comes and goes with what it joins."""
        folder = f"{_NET}/{name}"
        return self._files.exists(f"{folder}/operstate") and not self._files.exists(f"{folder}/bridge")

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


def _entry(text: str | None, key: str) -> int | None:
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
