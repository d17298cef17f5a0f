"""Block devices, from sysfs (Linux: Documentation/ABI/stable/sysfs-block)."""

from __future__ import annotations

from ..facts import BlockDevice
from ..files import Files

_BLOCK = "sys/block"
_SECTOR_BYTES = 512  # sysfs counts in these, whatever the device's own sectors
_NOT_STORAGE = ("loop", "ram", "zram", "sr", "fd")


def read_storage(files: Files) -> tuple[BlockDevice, ...]:
    """Disks; without partitions, loop devices, RAM disks, optical and floppy drives, hidden paths."""
    found = []
    for name in files.names(_BLOCK):
        folder, sectors = f"{_BLOCK}/{name}", files.number(f"{_BLOCK}/{name}/size")
        if name.rstrip("0123456789") in _NOT_STORAGE or files.number(f"{folder}/hidden") or not sectors:
            continue
        rotational = files.number(f"{folder}/queue/rotational")
        if name.startswith("nvme"):
            kind = "nvme"
        elif not files.exists(f"{folder}/device") or name.startswith(("vd", "xvd")):
            kind = "virtual"  # dm, md, virtio: what is below does not show
        else:
            kind = "hdd" if rotational else "ssd"
        numa = files.number(f"{folder}/device/numa_node")
        if numa is None:
            numa = files.number(f"{folder}/device/device/numa_node")
        found.append(
            BlockDevice(
                name=name,
                kind=kind,  # type: ignore[arg-type]
                size_bytes=sectors * _SECTOR_BYTES,
                model=files.text(f"{folder}/device/model"),
                numa_node=numa if numa is not None and numa >= 0 else None,
            )
        )
    return tuple(found)
