"""What this process may use of the machine: its CPU affinity and the limits of its control groups.

Source: Linux, admin-guide/cgroup-v2 and admin-guide/cgroup-v1. A group is also bound by the limits of its
ancestors, so the smallest of them counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ..facts import Limits
from ..files import Files, in_line, parse_cpu_list, whole
from .cpu import online_cpus
from .mounts import read_mounts

_V1_NO_LIMIT = 1 << 62  # cgroup v1 gives a number near 2**63 if there is no limit


def read_limits(files: Files) -> Limits:
    """The limits of this process; what its control groups do not limit, or cannot be read, is None."""
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
    """The online CPUs that affinity and cpuset allow: the kernel lists their intersection."""
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
    """Folders of this process's group and its visible ancestors."""
    for _, mount, root, path in _hierarchies(files, controller):
        yield from _with_ancestors(mount, root, path)


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
    """The folders of this process's group, one for each hierarchy.

    The root group of cgroup v1 is left out: its files cover only the processes directly in it. The root of v2
    has no such files, unless it is the root of a container's namespace: then they are the container's.
    """
    return [
        next(_with_ancestors(mount, root, path))
        for kind, mount, root, path in _hierarchies(files, controller)
        if kind == "cgroup2" or (root, path) != ("/", "/")
    ]


def _own_paths(files: Files) -> dict[str, str]:
    """The group of this process by controller; that of cgroup v2 has the key ""."""
    found: dict[str, str] = {}
    for line in (files.text("proc/self/cgroup") or "").split("\n"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path.startswith("/"):
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def _with_ancestors(mount: str, root: str, path: str) -> Iterator[str]:
    """The folders of group ``path`` and its ancestors up to ``root``, the group mounted at ``mount``."""
    group = PurePosixPath(path)
    inside = (
        group.relative_to(root) if group.is_relative_to(root) and ".." not in group.parts else PurePosixPath()
    )
    for part in (inside, *inside.parents):
        yield str(PurePosixPath(mount, part))
        if part == PurePosixPath():
            return
