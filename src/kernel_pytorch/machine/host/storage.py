"""Block devices, from sysfs (Linux: Documentation/ABI/stable/sysfs-block)."""

from __future__ import annotations

from typing import Literal

from ..facts import BlockDevice
from ..files import Files, printable

_BLOCK = "sys/block"
_SECTOR_BYTES = 512  # the unit of sysfs, whatever the device's sector size
_NOT_STORAGE = ("loop", "ram", "zram", "sr", "fd")


def read_storage(files: Files) -> tuple[BlockDevice, ...]:
    """The disks, without partitions, loop devices, RAM disks, optical and floppy drives and hidden paths."""
    found = []
    for name in files.names(_BLOCK):
        folder, sectors = f"{_BLOCK}/{name}", files.count(f"{_BLOCK}/{name}/size")
        hidden = files.exists(f"{folder}/hidden") and files.flag(f"{folder}/hidden") is not False
        if name.rstrip("0123456789") in _NOT_STORAGE or hidden or not sectors:
            continue
        kind: Literal["nvme", "ssd", "hdd", "virtual"] | None
        if name.startswith("nvme"):
            kind = "nvme"
        elif not files.exists(f"{folder}/device") or name.startswith(("vd", "xvd")):
            kind = "virtual"  # dm, md, virtio: the disks below are not visible
        else:
            rotational = files.flag(f"{folder}/queue/rotational")
            kind = None if rotational is None else "hdd" if rotational else "ssd"
        numa = files.count(f"{folder}/device/numa_node")
        found.append(
            BlockDevice(
                name=printable(name),
                kind=kind,
                size_bytes=sectors * _SECTOR_BYTES,
                model=files.text(f"{folder}/device/model"),
                numa_node=files.count(f"{folder}/device/device/numa_node") if numa is None else numa,
            )
        )
    return tuple(found)
