"""One node, whole: what the files of the kernel tell and what the vendors' drivers tell."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from .drivers.amd import AmdDriver
from .drivers.driver import Driver, DriverUnavailableError
from .drivers.intel import IntelDriver
from .drivers.nvidia import NvidiaDriver
from .facts import (
    CpuPackage,
    DeviceInfo,
    DeviceLink,
    HardwareVendor,
    Limits,
    LinkKind,
    Missing,
    NodeTopology,
    NumaNode,
)
from .files import Files, printable
from .host.cpu import highest_mhz, meminfo_bytes, read_caches, read_numa_nodes, read_packages
from .host.limits import read_limits
from .host.network import read_network_interfaces
from .host.pci import PciFunction, accelerators
from .host.storage import read_storage
from .known import total
from .peaks import peaks_of
from .visible import mark_hidden


@dataclass(frozen=True)
class Drivers:
    """The vendors' drivers that could be opened, in the order of the devices."""

    opened: tuple[Driver, ...]
    missing: tuple[Missing, ...]

    def close(self) -> None:
        with ExitStack() as closing:  # all, whatever one of them raises
            for driver in self.opened:
                closing.callback(driver.close)


def open_drivers(files: Files, *, load_torch: bool = True) -> Drivers:
    """Open what there is. What the PCI bus shows but no driver reads is missing.

    Args:
        load_torch: whether Intel's GPUs may be asked for through torch if it is not loaded yet.
    """
    on_bus = accelerators(files)
    opened: list[Driver] = []
    missing: list[Missing] = []

    def attempt(vendor: HardwareVendor, open_driver: Callable[[], Driver]) -> None:
        present = [function for function in on_bus if function.vendor is vendor]
        try:
            opened.append(open_driver())
        except DriverUnavailableError as error:
            if present:
                missing.append(Missing(what=_described(present), why=error.why, fix=error.fix))

    attempt(HardwareVendor.NVIDIA, lambda: NvidiaDriver(files))
    attempt(HardwareVendor.AMD, lambda: AmdDriver(files))
    intel = [function for function in on_bus if function.vendor is HardwareVendor.INTEL]
    if (load_torch and intel) or "torch" in sys.modules:
        attempt(HardwareVendor.INTEL, IntelDriver)
    elif intel:
        missing.append(
            Missing(
                what=_described(intel),
                why="read through torch.xpu, and torch is not loaded",
                fix="kernel-pytorch probe --measure, which loads it",
            )
        )
    return Drivers(tuple(opened), tuple(missing))


def _described(functions: list[PciFunction]) -> str:
    which = ", ".join(f"{function.address} (model {function.device})" for function in functions)
    return f"{functions[0].vendor.name} display controllers or accelerators {which}"


def read_node(files: Files, drivers: Drivers) -> NodeTopology:
    """Everything about this node. Without accelerators its CPU packages are the devices."""
    packages, numa_nodes, limits = read_packages(files), read_numa_nodes(files), read_limits(files)
    missing = list(drivers.missing)
    if not packages:
        missing.append(
            Missing(what="CPU topology and limits", why=f"no /sys/devices/system/cpu on {platform.system()}")
        )
        limits = limits if limits.cpus else _portable_limits()
    memory = meminfo_bytes(files.text("proc/meminfo"), "MemTotal")
    devices, links = _devices_and_links(drivers, numa_nodes)
    devices, untold = mark_hidden(devices, os.environ, files)
    missing += [*(note for driver in drivers.opened for note in driver.missing), *untold]
    if not devices:
        devices = _cpu_devices(files, packages, numa_nodes, memory, limits.memory_bytes)
        links = _cpu_links(devices)
    return NodeTopology(
        node_id=0,
        hostname=printable(socket.gethostname()),
        boot_id=files.text("proc/sys/kernel/random/boot_id"),
        network_namespace=files.link_name("proc/self/ns/net"),
        packages=packages,
        caches=read_caches(files),
        numa_nodes=numa_nodes,
        memory_bytes=memory,
        limits=limits,
        devices=tuple(devices),
        links=tuple(links),
        network_interfaces=read_network_interfaces(files),
        storage=read_storage(files),
        missing=tuple(missing),
    )


def _devices_and_links(
    drivers: Drivers, numa_nodes: tuple[NumaNode, ...]
) -> tuple[list[DeviceInfo], list[DeviceLink]]:
    near = {numa.numa_id: numa.cpus for numa in numa_nodes}
    devices: list[DeviceInfo] = []
    links: list[DeviceLink] = []
    for driver in drivers.opened:
        numbers: dict[int, int] = {}
        for found in driver.devices():
            numbers[found.index] = len(devices)
            cpus = () if found.numa_node is None else near.get(found.numa_node, ())
            devices.append(replace(found, device_id=len(devices), cpus=cpus, peaks=peaks_of(found.name)))
        links += [replace(link, a=numbers[link.a], b=numbers[link.b]) for link in driver.links()]
    return devices, links


def _cpu_devices(
    files: Files,
    packages: tuple[CpuPackage, ...],
    numa_nodes: tuple[NumaNode, ...],
    memory: int | None,
    granted: int | None,
) -> list[DeviceInfo]:
    """The packages; none has more memory than this process is granted."""
    if not packages:
        name = platform.machine() or "CPU"  # platform.processor() starts a process
        return [DeviceInfo(device_id=0, kind="cpu", index=0, vendor=HardwareVendor.UNKNOWN, name=name)]
    found = []
    for number, package in enumerate(packages):
        mine = set(package.cpus)
        own = [numa for numa in numa_nodes if mine & set(numa.cpus)]
        if len(packages) == 1 and all(mine.issuperset(numa.cpus) for numa in numa_nodes):
            size = memory
        elif all(mine.issuperset(numa.cpus) for numa in own):
            size = total(numa.memory_bytes for numa in own)
        else:
            size = None
        found.append(
            DeviceInfo(
                device_id=number,
                kind="cpu",
                index=package.package_id,
                vendor=package.vendor,
                name=package.model or platform.machine() or "CPU",
                memory_bytes=size if size is None or granted is None else min(size, granted),
                compute_units=len(package.cores),
                base_clock_mhz=highest_mhz(files, package, "base_frequency"),
                boost_clock_mhz=highest_mhz(files, package, "cpuinfo_max_freq"),
                numa_node=own[0].numa_id if len(own) == 1 else None,
                cpus=package.cpus,
            )
        )
    return found


def _cpu_links(devices: list[DeviceInfo]) -> list[DeviceLink]:
    return [
        DeviceLink(a=a.device_id, b=b.device_id, kind=LinkKind.SOCKET)
        for a in devices
        for b in devices
        if a.device_id < b.device_id
    ]


def _portable_limits() -> Limits:
    try:
        cpus = tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        cpus = tuple(range(os.cpu_count() or 1))
    return Limits(cpus=cpus, cpu_quota=None, memory_bytes=None)
