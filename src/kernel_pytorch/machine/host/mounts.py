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
"""Local, though their device number is none of a block device: they have pools or several disks, lie on bare
flash, or are a folder of a virtual machine's host."""
_SHARED = ("gfs2", "ocfs2")
"""On a block device that several hosts write; without the others they hang."""
_NO_DEVICE, _LOOP = "0", "7"  # major numbers (Linux: admin-guide/devices.txt)


class Mount(NamedTuple):
    device: str
    """Major and minor number of the file system, 254:1."""
    root: str
    """The folder of the file system that is mounted."""
    point: str
    options: list[str]
    kind: str
    source: str
    super_options: list[str]


def read_mounts(files: Files) -> Iterator[Mount]:
    """Every mount, in the kernel's order."""
    for line in (files.text("proc/self/mountinfo") or "").split("\n"):
        if match := _LINE.fullmatch(line):
            device, root, point, options, kind, source, more = match.groups(default="")
            yield Mount(
                device, _plain(root), _plain(point), options.split(","), kind, _plain(source), more.split(",")
            )


def _plain(escaped: str) -> str:
    """``a\\040b`` is ``a b``."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)


def mount_points(files: Files) -> Iterator[str]:
    """Where files are kept: ``/``, local file systems, RAM disks; each file system once.

    Local is what lies on a block device, and the kinds in ``_LOCAL``. Left out: what cannot be written (full
    from the start); whatever else has no block device, that is network file systems (nfs, cifs, 9p, ceph,
    lustre, gpfs, all of fuse), for asking a dead server hangs, and the kernel's own.
    """
    seen: set[str] = set()
    for mount in read_mounts(files):
        major = mount.device.partition(":")[0]
        local = mount.kind in _LOCAL or (major not in (_NO_DEVICE, _LOOP) and mount.kind not in _SHARED)
        in_memory = mount.kind == "tmpfs" and not mount.point.startswith(("/sys/", "/proc/"))
        # Each subvolume of btrfs has a device number of its own; their space is one.
        identity = mount.source if mount.kind == "btrfs" else mount.device
        if identity in seen or "ro" in mount.options or not (mount.point == "/" or local or in_memory):
            continue
        if _is_folder(files, mount.point):  # containers bind single files: /etc/hosts
            seen.add(identity)
            yield mount.point


def _is_folder(files: Files, mount: str) -> bool:
    try:
        return stat.S_ISDIR(files.path(mount).stat().st_mode)
    except (OSError, ValueError):
        return False
