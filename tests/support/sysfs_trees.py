"""Machines as folders: the files of /proc and /sys that describe them, written below any root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def cpu_list(cpus: Sequence[int]) -> str:
    return ",".join(map(str, sorted(cpus)))


def cpu_mask(cpus: Sequence[int]) -> str:
    """As sysfs writes masks: words of 32 bits, the highest first."""
    mask = sum(1 << cpu for cpu in cpus)
    words = [f"{mask >> shift & 0xFFFFFFFF:08x}" for shift in range(0, max(cpus, default=0) + 1, 32)]
    return ",".join(reversed(words))


def write_host(
    root: Path,
    *,
    packages: Sequence[Sequence[Sequence[int]]],
    numa: Sequence[Sequence[int]],
    distances: Sequence[Sequence[int]] | None = None,
    offline: Sequence[int] = (),
    memory_kb: int = 1 << 20,
    huge_pages: int = 0,
    vendor: str = "GenuineIntel",
    model: str = "A CPU @ 2.00GHz",
) -> None:
    """A Linux host.

    Args:
        packages: for each socket, for each core, its CPUs.
        numa: the CPUs of each NUMA node, of memory_kb kB each.
        offline: CPUs that are switched off.
    """
    every = sorted(cpu for cores in packages for core in cores for cpu in core)
    online = [cpu for cpu in every if cpu not in offline]
    cpus = "sys/devices/system/cpu"
    for name, which in (("online", online), ("possible", every), ("present", every)):
        write(root, f"{cpus}/{name}", cpu_list(which))
    write(root, f"{cpus}/offline", cpu_list(offline))
    blocks = []
    for package, cores in enumerate(packages):
        whole = [cpu for core in cores for cpu in core if cpu in online]
        for number, core in enumerate(cores):
            threads = [cpu for cpu in core if cpu in online]
            for cpu in core:
                folder = f"{cpus}/cpu{cpu}"
                (root / folder).mkdir(parents=True, exist_ok=True)
                if cpu != 0:
                    write(root, f"{folder}/online", int(cpu in online))
                if cpu not in online:
                    continue
                write(root, f"{folder}/topology/physical_package_id", package)
                write(root, f"{folder}/topology/core_id", number)
                for kind, shared in (("core_cpus", threads), ("thread_siblings", threads)):
                    write(root, f"{folder}/topology/{kind}", cpu_mask(shared))
                    write(root, f"{folder}/topology/{kind}_list", cpu_list(shared))
                for kind in ("package_cpus", "core_siblings"):
                    write(root, f"{folder}/topology/{kind}", cpu_mask(whole))
                    write(root, f"{folder}/topology/{kind}_list", cpu_list(whole))
                for index, (level, type_, size, shared) in enumerate(
                    (
                        (1, "Data", "32K", threads),
                        (1, "Instruction", "32K", threads),
                        (2, "Unified", "1024K", threads),
                        (3, "Unified", "16384K", whole),
                    )
                ):
                    cache = f"{folder}/cache/index{index}"
                    write(root, f"{cache}/level", level)
                    write(root, f"{cache}/type", type_)
                    write(root, f"{cache}/size", size)
                    write(root, f"{cache}/shared_cpu_map", cpu_mask(shared))
                    write(root, f"{cache}/shared_cpu_list", cpu_list(shared))
                    write(root, f"{cache}/coherency_line_size", 64)
                    write(root, f"{cache}/number_of_sets", 64)
                    write(root, f"{cache}/physical_line_partition", 1)
                blocks.append(
                    f"processor\t: {cpu}\nvendor_id\t: {vendor}\ncpu family\t: 6\nmodel\t\t: 85\n"
                    f"model name\t: {model}\nstepping\t: 7\nphysical id\t: {package}\ncore id\t\t: {number}\n"
                )
    write(root, "proc/cpuinfo", "\n".join(sorted(blocks, key=lambda block: int(block.split()[2]))))
    nodes = "sys/devices/system/node"
    write(root, f"{nodes}/online", cpu_list(range(len(numa))))
    write(root, f"{nodes}/possible", cpu_list(range(len(numa))))
    for number, own in enumerate(numa):
        folder = f"{nodes}/node{number}"
        write(
            root, f"{folder}/cpumap", cpu_mask([cpu for cpu in own if cpu in online] or [0]) if own else "0"
        )
        write(root, f"{folder}/cpulist", cpu_list([cpu for cpu in own if cpu in online]))
        write(
            root, f"{folder}/meminfo", f"Node {number} MemTotal:  {memory_kb} kB\nNode {number} MemFree: 1 kB"
        )
        row = (
            distances[number] if distances else [10 if other == number else 20 for other in range(len(numa))]
        )
        write(root, f"{folder}/distance", " ".join(map(str, row)))
        pages = f"{folder}/hugepages/hugepages-2048kB"
        write(root, f"{pages}/nr_hugepages", huge_pages)
        write(root, f"{pages}/free_hugepages", huge_pages)
    write(
        root,
        "proc/meminfo",
        f"MemTotal:  {memory_kb * len(numa)} kB\nHugePages_Total: 0\nHugepagesize: 2048 kB",
    )
    write(
        root, "proc/self/status", f"Name:\tx\nCpus_allowed_list:\t{cpu_list(online)}\nMems_allowed_list:\t0"
    )
    write(root, "proc/self/cgroup", "0::/")
    write(root, "proc/self/mountinfo", "")


def write_link(root: Path, name: str, target: str) -> None:
    """A symbolic link below ``root`` to ``target``, also below it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / target).mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(root / target, path.parent))
