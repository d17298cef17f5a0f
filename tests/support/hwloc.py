"""CPUs, caches and NUMA nodes as hwloc sees them: the tests' oracle, from the XML of ``lstopo --of xml``."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kernel_pytorch.machine.facts import Cache, CpuPackage, HardwareVendor, HugePages, NumaNode
from kernel_pytorch.machine.host.cpu import CPU_VENDORS

_CACHE_TYPES: dict[str | None, Literal["data", "instruction", "unified"]] = {
    "0": "unified",
    "1": "data",
    "2": "instruction",
}
_BASE_PAGE_BYTES = 64 << 10  # the largest base page of any architecture that PyTorch runs on


@dataclass(frozen=True, kw_only=True)
class HwlocTopology:
    packages: tuple[CpuPackage, ...]
    caches: tuple[Cache, ...]
    numa_nodes: tuple[NumaNode, ...]


def lstopo_xml(*arguments: str, **environment: str) -> str:
    """What ``lstopo --of xml`` prints, with more environment variables."""
    command = ["lstopo-no-graphics", *arguments, "--of", "xml"]
    env = {**os.environ, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def read_hwloc_xml(text: str) -> HwlocTopology:
    """The topology in an XML file of hwloc 2.

    Raises:
        ValueError: it is not one.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not the XML of hwloc: {error}") from error
    if root.tag != "topology" or not root.get("version", "").startswith("2."):
        raise ValueError(f"not the XML of hwloc 2: <{root.tag} version={root.get('version')!r}>")
    machine = root.find("object")
    if machine is None:
        raise ValueError("the XML of hwloc has no machine in it")
    numas = sorted(_of_type(machine, "NUMANode"), key=_os_index)
    rows = _distances(root, [_os_index(numa) for numa in numas])
    return HwlocTopology(
        packages=tuple(_package(found) for found in sorted(_of_type(machine, "Package"), key=_os_index)),
        caches=tuple(sorted(_caches(machine), key=lambda cache: (cache.level, cache.type, cache.cpus))),
        numa_nodes=tuple(
            NumaNode(
                numa_id=_os_index(numa),
                cpus=_cpuset(numa),
                memory_bytes=int(numa.get("local_memory", "0")) or None,
                distances=rows.get(_os_index(numa), ()),
                huge_pages=tuple(
                    HugePages(
                        size_bytes=int(page.get("size", "0")), total=int(page.get("count", "0")), free=0
                    )
                    for page in numa.findall("page_type")
                    if int(page.get("size", "0")) > _BASE_PAGE_BYTES
                ),
            )
            for numa in numas
        ),
    )


def _of_type(element: ElementTree.Element, kind: str) -> Iterator[ElementTree.Element]:
    return (found for found in element.iter("object") if found.get("type") == kind)


def _os_index(element: ElementTree.Element) -> int:
    return int(element.get("os_index", "0"))


def _cpuset(element: ElementTree.Element) -> tuple[int, ...]:
    """``0x00000001,0x000000ff``: 32 CPUs a word, the highest first; a word without CPUs may be left empty."""
    mask = 0
    for word in element.get("cpuset", "0x0").split(","):
        mask = mask << 32 | int(word or "0", 16)
    return tuple(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)


def _package(element: ElementTree.Element) -> CpuPackage:
    infos = {info.get("name"): info.get("value") for info in element.findall("info")}
    return CpuPackage(
        package_id=_os_index(element),
        model=infos.get("CPUModel"),
        vendor=CPU_VENDORS.get(infos.get("CPUVendor") or "", HardwareVendor.UNKNOWN),
        cores=tuple(sorted(_cpuset(core) for core in _of_type(element, "Core"))),
    )


def _caches(machine: ElementTree.Element) -> Iterator[Cache]:
    for element in machine.iter("object"):
        if "Cache" in element.get("type", ""):
            yield Cache(
                level=int(element.get("depth", "0")),
                type=_CACHE_TYPES[element.get("cache_type")],
                size_bytes=int(element.get("cache_size", "0")),
                cpus=_cpuset(element),
            )


def _distances(root: ElementTree.Element, ids: list[int]) -> dict[int, tuple[int, ...]]:
    for found in root.iter("distances2"):
        if found.get("type") == "NUMANode":
            values = [int(word) for part in found.findall("u64values") for word in (part.text or "").split()]
            size = int(found.get("nbobjs", "0"))
            if size == len(ids) and len(values) == size * size:
                return {id: tuple(values[i * size : (i + 1) * size]) for i, id in enumerate(ids)}
    return {}
