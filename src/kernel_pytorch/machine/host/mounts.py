"""Mounted file systems, from ``/proc/self/mountinfo`` (man 5 proc_pid_mountinfo)."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from ..files import Files

# 36 35 98:0 /root /mount/point options [optional fields] - type source [super options]
_LINE = re.compile(
    r"\d+ \d+ (\d+:\d+) ([^ ]+) ([^ ]+) ([^ ]+)(?: [^ ]+)* - ([^ ]+) ([^ ]*)(?: ([^ ]*))?", re.ASCII
)
_LOCAL = ("bcachefs", "btrfs", "ubifs", "virtiofs", "zfs")
"""Local file systems whose device number is not that of a block device: they span several disks, lie on raw
flash, or are a folder of a virtual machine's host."""
_SHARED = ("gfs2", "ocfs2")
"""File systems on a block device shared by several hosts; access may hang if another host fails."""
_NO_DEVICE, _LOOP = "0", "7"  # major numbers (Linux: admin-guide/devices.txt)


class Mount(NamedTuple):
    """A line of mountinfo."""

    device: str
    """Major and minor device number of the file system, such as 254:1."""
    root: str
    """The folder inside the file system that is mounted."""
    point: str
    options: list[str]
    kind: str
    source: str
    super_options: list[str]


def read_mounts(files: Files) -> Iterator[Mount]:
    """All mounts, in the kernel's order."""
    for line in (files.text("proc/self/mountinfo") or "").split("\n"):
        if match := _LINE.fullmatch(line):
            device, root, point, options, kind, source, more = match.groups(default="")
            yield Mount(
                device,
                _unescaped(root),
                _unescaped(point),
                options.split(","),
                kind,
                _unescaped(source),
                more.split(","),
            )


def _unescaped(escaped: str) -> str:
    """Octal escapes replaced: ``a\\040b`` becomes ``a b``."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)


def mount_points(files: Files) -> Iterator[str]:
    """Mount points whose free space matters: ``/``, local file systems, RAM disks; one for each file system.

    A file system is local if it lies on a block device or is of a kind in ``_LOCAL``. Left out are read-only
    mounts, which may be full by design, network file systems (nfs, cifs, 9p, ceph, lustre, gpfs, fuse), on
    which statvfs hangs if the server does not answer, and the kernel's pseudo file systems.
    """
    seen: set[str] = set()
    for mount in read_mounts(files):
        major = mount.device.partition(":")[0]
        local = mount.kind in _LOCAL or (major not in (_NO_DEVICE, _LOOP) and mount.kind not in _SHARED)
        in_memory = mount.kind == "tmpfs" and not mount.point.startswith(("/sys/", "/proc/"))
        # Subvolumes of btrfs have different device numbers but share their space.
        identity = mount.source if mount.kind == "btrfs" else mount.device
        if identity in seen or "ro" in mount.options or not (mount.point == "/" or local or in_memory):
            continue
        if _is_folder(files, mount.point):  # containers bind-mount single files such as /etc/hosts
            seen.add(identity)
            yield mount.point


def _is_folder(files: Files, mount: str) -> bool:
    try:
        return stat.S_ISDIR(files.path(mount).stat().st_mode)
    except (OSError, ValueError):
        return False
