"""CPU packages, cores, caches and NUMA nodes, from Linux's sysfs (ABI/stable/sysfs-devices-system-cpu)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from ..facts import Cache, CpuPackage, HardwareVendor, HugePages, NumaNode
from ..files import Files, in_line, whole

_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"
CPU_VENDORS = {"AuthenticAMD": HardwareVendor.AMD, "GenuineIntel": HardwareVendor.INTEL}
_MODEL_KEYS = ("model name", "cpu model", "cpu", "uarch")
"""Keys of /proc/cpuinfo in lower case: of x86 and LoongArch, MIPS, POWER, RISC-V."""
# On ARM, /proc/cpuinfo has no name, only implementer and part number (Main ID Register, MIDR_EL1).
_ARM_MODELS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd85"): "Cortex-X925",
    ("0x41", "0xd87"): "Cortex-A725",
    ("0x43", "0x0af"): "ThunderX2",
    ("0x46", "0x001"): "A64FX",
    ("0x48", "0xd01"): "Kunpeng-920",
    ("0x4e", "0x004"): "Carmel",
    ("0xc0", "0xac3"): "Ampere-1",
    ("0xc0", "0xac4"): "Ampere-1a",
}
_CACHE_TYPES: dict[str | None, Literal["data", "instruction", "unified"]] = {
    "Data": "data",
    "Instruction": "instruction",
    "Unified": "unified",
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def online_cpus(files: Files) -> tuple[int, ...]:
    """The numbers of the online CPUs, ascending; empty where there is no sysfs."""
    return files.cpus(f"{_CPUS}/online")


def read_packages(files: Files) -> tuple[CpuPackage, ...]:
    """The packages with their online cores; empty where there is no sysfs.

    If no CPU has a package id, all are in package 0; if only some have none, those are left out.
    """
    online = online_cpus(files)
    ids = {cpu: files.count(f"{_CPUS}/cpu{cpu}/topology/physical_package_id") for cpu in online}
    if set(ids.values()) == {None}:
        ids = dict.fromkeys(online, 0)
    threads = {cpu: _threads(files, cpu) for cpu in online}
    cores: dict[int, list[tuple[int, ...]]] = {}
    left = {cpu for cpu, package in ids.items() if package is not None}
    # CPUs that list their core come first: the list may hold CPUs that have none.
    for cpu in sorted(left, key=lambda cpu: (not threads[cpu], cpu)):
        if (package := ids[cpu]) is not None and cpu in left:
            siblings = (sibling for sibling in threads[cpu] if sibling in left and ids[sibling] == package)
            core = tuple(siblings) or (cpu,)
            cores.setdefault(package, []).append(core)
            left.difference_update(core)
    described = _cpuinfo(files)
    return tuple(
        CpuPackage(
            package_id=package,
            model=_joined(_model(described.get(cpu, {})) for core in found for cpu in core),
            vendor=CPU_VENDORS.get(
                described.get(found[0][0], {}).get("vendor_id", ""), HardwareVendor.UNKNOWN
            ),
            cores=tuple(sorted(found)),
        )
        for package, found in sorted(cores.items())
    )


def _threads(files: Files, cpu: int) -> tuple[int, ...]:
    """The CPUs of its core, including itself; empty if unknown."""
    lists = (f"{_CPUS}/cpu{cpu}/topology/{name}" for name in ("core_cpus_list", "thread_siblings_list"))
    return next((found for name in lists if cpu in (found := files.cpus(name))), ())


def _cpuinfo(files: Files) -> dict[int, dict[str, str]]:
    """The entries of /proc/cpuinfo by CPU, with keys in lower case."""
    found = {}
    for block in (files.text("proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in block.split("\n"))
        entry = {key.strip().lower(): value.strip() for key, _, value in pairs}
        if (number := whole(entry.get("processor"))) is not None:
            found[number] = entry
    return found


def _model(entry: dict[str, str]) -> str | None:
    if part := entry.get("cpu part"):
        implementer = entry.get("cpu implementer", "unknown")
        return _ARM_MODELS.get((implementer, part), f"ARM implementer {implementer}, part {part}")
    named = (entry[key] for key in _MODEL_KEYS if entry.get(key))
    return next(named, "").removesuffix(", altivec supported") or None


def _joined(models: Iterable[str | None]) -> str | None:
    """The distinct names: a package may have several kinds of cores (big.LITTLE)."""
    return " + ".join(dict.fromkeys(filter(None, models))) or None


def highest_mhz(files: Files, package: CpuPackage, name: str) -> int | None:
    """The highest value of the files ``cpufreq/name`` (in kHz) of a package's cores; None if unknown."""
    clocks = (files.count(f"{_CPUS}/cpu{core[0]}/cpufreq/{name}") for core in package.cores)
    return max((khz // 1000 for khz in clocks if khz), default=None)


def read_caches(files: Files) -> tuple[Cache, ...]:
    """The caches, each with the online CPUs that share it."""
    online = set(online_cpus(files))
    found: dict[tuple[int, str, tuple[int, ...]], Cache] = {}
    for cpu in sorted(online):
        folder = f"{_CPUS}/cpu{cpu}/cache"
        for index in files.numbered(folder, "index"):
            cache = f"{folder}/index{index}"
            level, kind = files.count(f"{cache}/level"), _CACHE_TYPES.get(files.text(f"{cache}/type"))
            size = _size_bytes(files.text(f"{cache}/size"))
            shared = tuple(c for c in files.cpus(f"{cache}/shared_cpu_list") if c in online)
            if level is None or kind is None or size is None or cpu not in shared:
                continue
            found[level, kind, shared] = Cache(level=level, type=kind, size_bytes=size, cpus=shared)
    return tuple(found[key] for key in sorted(found))


def _size_bytes(text: str | None) -> int | None:
    """``32768K`` in bytes."""
    found = re.fullmatch("([0-9]{1,12})([KMG]?)", text or "")
    return int(found[1]) * _UNITS[found[2]] if found else None


def read_numa_nodes(files: Files) -> tuple[NumaNode, ...]:
    """The NUMA nodes. A kernel without NUMA support counts as one node with all CPUs and all memory."""
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
            distances=_distances(files.text(f"{_NODES}/node{number}/distance"), len(ids)),
            huge_pages=_huge_pages(files, f"{_NODES}/node{number}/hugepages"),
        )
        for number in ids
    )


def _distances(text: str | None, num_nodes: int) -> tuple[int, ...]:
    """The distance to each node; empty if unknown."""
    found = [whole(word) for word in (text or "").split(" ")]
    known = tuple(distance for distance in found if distance is not None and distance >= 0)
    return known if len(known) == len(found) == num_nodes else ()


def meminfo_bytes(text: str | None, key: str) -> int | None:
    """The entry ``key`` of a meminfo file, the host's or a NUMA node's; None if there is none."""
    found = whole(in_line(text, rf"(?:Node \d+ )?{key}:[ \t]*(\d+) kB"))
    return None if found is None else found * 1024  # its "kB" are 1024 bytes


def _huge_pages(files: Files, folder: str) -> tuple[HugePages, ...]:
    found = []
    for name in files.names(folder):
        size_kb = whole(name.removeprefix("hugepages-").removesuffix("kB"))
        total, free = (files.count(f"{folder}/{name}/{which}_hugepages") for which in ("nr", "free"))
        if size_kb is not None and total is not None and free is not None:
            found.append(HugePages(size_bytes=size_kb * 1024, total=total, free=free))
    return tuple(sorted(found, key=lambda pages: pages.size_bytes))
