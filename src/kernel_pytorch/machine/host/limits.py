"""What this process may use of the machine: its CPU affinity and the limits of its control groups.

Both cgroup hierarchies, as in the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1. A group's
ancestors limit it too, so the narrowest limit on the way up counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ..facts import Limits
from ..files import Files, in_line, parse_cpu_list, whole
from .cpu import online_cpus
from .mounts import read_mounts

_V1_NO_LIMIT = 1 << 62  # cgroup v1 has no word for "none" but a number near 2**63


def read_limits(files: Files) -> Limits:
    quotas: list[float] = []
    memory: list[int] = []
    for folder in _groups(files, "cpu"):
        quotas.extend(_quota(files, folder))
    for folder in _groups(files, "memory"):
        limits = (files.count(f"{folder}/{name}") for name in ("memory.max", "memory.limit_in_bytes"))
        memory.extend(limit for limit in limits if limit is not None and limit < _V1_NO_LIMIT)
    return Limits(
        cpus=_affinity(files),
        cpu_quota=min(quotas, default=None),
        memory_bytes=min(memory, default=None),
    )


def _affinity(files: Files) -> tuple[int, ...]:
    """Affinity and cpuset in one: the kernel lists what is left of both."""
    online = online_cpus(files)
    text = in_line(files.text("proc/self/status"), r"Cpus_allowed_list:[ \t]*(.*)")
    allowed = set(parse_cpu_list(text or "")) or set(online)
    return tuple(cpu for cpu in online if cpu in allowed) if online else tuple(sorted(allowed))


def _quota(files: Files, folder: str) -> Iterator[float]:
    v2_quota, _, v2_period = (files.text(f"{folder}/cpu.max") or "").partition(" ")
    v1_quota, v1_period = (files.number(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period"))
    for quota, period in ((whole(v2_quota), whole(v2_period)), (v1_quota, v1_period)):
        if quota is not None and period is not None and quota > 0 and period > 0:
            yield quota / period


def _groups(files: Files, controller: str) -> Iterator[str]:
    """Folders of this process's group and its ancestors, as far as they can be seen."""
    for _, mount, root, path in _hierarchies(files, controller):
        yield from _way_up(mount, root, path)


def _hierarchies(files: Files, controller: str) -> Iterator[tuple[str, str, str, str]]:
    """For each hierarchy with the controller: kind, mount point, group mounted there, own group."""
    paths = _own_paths(files)
    for mount in read_mounts(files):
        if mount.kind == "cgroup2":
            path = paths.get("")
        elif mount.kind == "cgroup" and controller in mount.super_options:
            path = paths.get(controller)
        else:
            continue
        if path is not None:
            yield mount.kind, mount.point, mount.root, path


def own_groups(files: Files, controller: str) -> list[str]:
    """The folders of this process's own group, one for each hierarchy.

    Left out is the root of cgroup v1, whose files tell of the processes in it alone, not of the host. That of
    v2 has no such files, unless it is the root of a container's namespace, and then they are the container's.
    """
    return [
        next(_way_up(mount, root, path))
        for kind, mount, root, path in _hierarchies(files, controller)
        if kind == "cgroup2" or (root, path) != ("/", "/")
    ]


def _own_paths(files: Files) -> dict[str, str]:
    """The group of this process by controller; cgroup v2 is the controller ""."""
    found: dict[str, str] = {}
    for line in (files.text("proc/self/cgroup") or "").split("\n"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path.startswith("/"):
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def _way_up(mount: str, root: str, path: str) -> Iterator[str]:
    """A container's mount shows the hierarchy from ``root`` down; what is outside cannot be seen."""
    group = PurePosixPath(path)
    inside = (
        group.relative_to(root) if group.is_relative_to(root) and ".." not in group.parts else PurePosixPath()
    )
    for part in (inside, *inside.parents):
        yield str(PurePosixPath(mount, part))
        if part == PurePosixPath():
            return
