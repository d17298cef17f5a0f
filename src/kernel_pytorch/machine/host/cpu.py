"""CPU packages, cores, caches and NUMA nodes, from Linux's sysfs (ABI/stable/sysfs-devices-system-cpu)."""

from __future__ import annotations

from typing import Literal

from ..facts import Cache, CpuPackage, HardwareVendor, HugePages, NumaNode
from ..files import Files

_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"
CPU_VENDORS = {"AuthenticAMD": HardwareVendor.AMD, "GenuineIntel": HardwareVendor.INTEL}
_CACHE_TYPES: dict[str | None, Literal["data", "instruction", "unified"]] = {
    "Data": "data",
    "Instruction": "instruction",
    "Unified": "unified",
}
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def online_cpus(files: Files) -> tuple[int, ...]:
    return files.cpus(f"{_CPUS}/online")


def read_packages(files: Files) -> tuple[CpuPackage, ...]:
    """The sockets with their online cores; empty where there is no sysfs."""
    online = set(online_cpus(files))
    cores: dict[int, set[tuple[int, ...]]] = {}
    for cpu in sorted(online):
        topology = f"{_CPUS}/cpu{cpu}/topology"
        package = files.number(f"{topology}/physical_package_id")
        threads = files.cpus(f"{topology}/core_cpus_list") or files.cpus(f"{topology}/thread_siblings_list")
        core = tuple(thread for thread in threads if thread in online) or (cpu,)
        cores.setdefault(0 if package is None else max(package, 0), set()).add(core)
    described = _cpuinfo(files)
    return tuple(
        CpuPackage(
            package_id=package,
            model=described.get(min(found)[0], {}).get("model name"),
            vendor=CPU_VENDORS.get(
                described.get(min(found)[0], {}).get("vendor_id", ""), HardwareVendor.UNKNOWN
            ),
            cores=tuple(sorted(found)),
        )
        for package, found in sorted(cores.items())
    )


def _cpuinfo(files: Files) -> dict[int, dict[str, str]]:
    """What /proc/cpuinfo tells of each CPU. ARM's kernels name neither vendor nor model there."""
    found = {}
    for block in (files.text("proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        entry = {key.strip(): value.strip() for key, _, value in pairs}
        if entry.get("processor", "").isdecimal():
            found[int(entry["processor"])] = entry
    return found


def read_caches(files: Files) -> tuple[Cache, ...]:
    """Every cache once, with the online CPUs that share it."""
    online = set(online_cpus(files))
    found: dict[tuple[int, str, tuple[int, ...]], Cache] = {}
    for cpu in sorted(online):
        folder = f"{_CPUS}/cpu{cpu}/cache"
        for index in files.numbered(folder, "index"):
            cache = f"{folder}/index{index}"
            level, kind = files.number(f"{cache}/level"), _CACHE_TYPES.get(files.text(f"{cache}/type"))
            size = _size_bytes(files.text(f"{cache}/size"))
            if level is None or kind is None or size is None:
                continue
            shared = tuple(c for c in files.cpus(f"{cache}/shared_cpu_list") if c in online) or (cpu,)
            found[level, kind, shared] = Cache(level=level, type=kind, size_bytes=size, cpus=shared)
    return tuple(found[key] for key in sorted(found))


def _size_bytes(text: str | None) -> int | None:
    """``32768K`` in bytes."""
    digits = (text or "").rstrip("KMG")
    if text is None or not digits.isdecimal():
        return None
    return int(digits) * _UNITS.get(text[len(digits) :], 1)


def read_numa_nodes(files: Files) -> tuple[NumaNode, ...]:
    """The NUMA nodes; a kernel that knows of none has one, with all CPUs and all memory."""
    ids = files.numbered(_NODES, "node")
    if not ids:
        cpus = online_cpus(files)
        if not cpus:
            return ()
        pages = _huge_pages(files, "sys/kernel/mm/hugepages")
        memory = meminfo_bytes(files.text("proc/meminfo"), "MemTotal")
        return (NumaNode(numa_id=0, cpus=cpus, memory_bytes=memory, distances=(10,), huge_pages=pages),)
    online = set(online_cpus(files))
    return tuple(
        NumaNode(
            numa_id=number,
            cpus=tuple(cpu for cpu in files.cpus(f"{_NODES}/node{number}/cpulist") if cpu in online),
            memory_bytes=meminfo_bytes(files.text(f"{_NODES}/node{number}/meminfo"), "MemTotal"),
            distances=tuple(map(int, (files.text(f"{_NODES}/node{number}/distance") or "").split())),
            huge_pages=_huge_pages(files, f"{_NODES}/node{number}/hugepages"),
        )
        for number in ids
    )


def meminfo_bytes(text: str | None, key: str) -> int | None:
    """The entry ``key`` of a meminfo file, whose kB are 1024 bytes."""
    for line in (text or "").splitlines():
        words = line.replace(":", " ").split()
        if key in words and words[-1] == "kB":
            return int(words[words.index(key) + 1]) * 1024
    return None


def _huge_pages(files: Files, folder: str) -> tuple[HugePages, ...]:
    found = []
    for name in files.names(folder):
        size = name.removeprefix("hugepages-").removesuffix("kB")
        total, free = (
            files.number(f"{folder}/{name}/nr_hugepages"),
            files.number(f"{folder}/{name}/free_hugepages"),
        )
        if size.isdecimal() and total is not None and free is not None:
            found.append(HugePages(size_bytes=int(size) * 1024, total=total, free=free))
    return tuple(sorted(found, key=lambda pages: pages.size_bytes))
