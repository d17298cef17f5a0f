"""One node, whole: what the files of the kernel tell and what the vendors' drivers tell."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ..errors import Unavailable
from .drivers.amd import AmdDriver
from .drivers.driver import Driver, DriverAbsentError
from .drivers.guarded import GuardedDriver
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

    opened: tuple[GuardedDriver, ...]
    missing: tuple[Missing, ...]
    on_bus: tuple[PciFunction, ...] = ()

    def close(self) -> None:
        """Close all, whatever one of them raises; one that hangs is left after ``CLOSE_S``."""
        calls = [driver.begin_close() for driver in self.opened]
        with ExitStack() as closing:
            for driver, call in zip(self.opened, calls, strict=True):
                closing.callback(driver.end_close, call)


def open_drivers(files: Files, *, load_torch: bool = True) -> Drivers:
    """Open what there is. What the PCI bus shows but no driver reads is missing.

    So is a driver that fails, whatever the bus shows (nothing under WSL 2), but not one that is not there.

    Args:
        load_torch: whether Intel's GPUs may be asked for through torch if it is not loaded yet.
    """
    on_bus = accelerators(files)
    opened: list[GuardedDriver] = []
    missing: list[Missing] = []

    def attempt(name: str, vendor: HardwareVendor, open_driver: Callable[[], Driver]) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # amdsmi prints where its library is absent
                opened.append(GuardedDriver(name, vendor, open_driver))
        except Unavailable as error:
            present = _discrete(on_bus, vendor)
            if present or not isinstance(error, DriverAbsentError):
                missing.append(Missing(what=_described(vendor, present), why=error.why, fix=error.fix))

    attempt("NVML", HardwareVendor.NVIDIA, lambda: NvidiaDriver(files))
    attempt("AMD SMI", HardwareVendor.AMD, lambda: AmdDriver(files))
    intel = _discrete(on_bus, HardwareVendor.INTEL)
    any_intel = any(function.vendor is HardwareVendor.INTEL for function in on_bus)
    if (load_torch and any_intel) or "torch" in sys.modules:
        attempt("torch.xpu", HardwareVendor.INTEL, IntelDriver)
    elif intel:
        missing.append(
            Missing(
                what=_described(HardwareVendor.INTEL, intel),
                why="read through torch.xpu, and torch is not loaded",
                fix="kernel-pytorch probe --measure, which loads it",
            )
        )
    return Drivers(tuple(opened), tuple(missing), on_bus)


def _discrete(on_bus: tuple[PciFunction, ...], vendor: HardwareVendor) -> list[PciFunction]:
    return [function for function in on_bus if function.vendor is vendor and not function.integrated]


def _described(vendor: HardwareVendor, functions: list[PciFunction]) -> str:
    which = ", ".join(
        f"{function.address} (model {function.device}{f', {function.driver}' if function.driver else ''})"
        for function in functions
    )
    return f"{vendor.name} display controllers or accelerators {which}".rstrip()


def _not_shown(files: Files, drivers: Drivers) -> Iterator[Missing]:
    """Accelerators that their vendor's driver, though open, does not show, and Tegra's GPU."""
    for driver in drivers.opened:
        devices, present = driver.facts.devices, _discrete(drivers.on_bus, driver.vendor)
        shown = {device.pci.address.rpartition(".")[0] for device in devices if device.pci}
        hidden = [function for function in present if function.slot not in shown]
        if len(hidden) > sum(device.pci is None for device in devices):
            yield Missing(
                what=_described(driver.vendor, hidden),
                why=f"on the PCI bus, but {driver.name} shows {len(devices)} of {len(present)}",
                fix="give the container or the job all GPUs; unbind it from vfio-pci; if it fell off the bus "
                "(dmesg), reset it, or reboot",
            )
    chip = (files.text("proc/device-tree/compatible") or "").partition("nvidia,tegra")[2].partition("\0")[0]
    nvidia = any(driver.facts.devices for driver in drivers.opened if driver.vendor is HardwareVendor.NVIDIA)
    if chip and not nvidia:
        yield Missing(
            what=f"GPU of NVIDIA's Tegra {chip} (Jetson)",
            why="it is not on the PCI bus, and NVML does not show it",
            fix="tegrastats tells its load and temperature",
        )


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
    missing += [*(note for driver in drivers.opened for note in driver.facts.missing), *untold]
    missing += _not_shown(files, drivers)
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
        for found in driver.facts.devices:
            numbers[found.index] = len(devices)
            cpus = () if found.numa_node is None else near.get(found.numa_node, ())
            devices.append(replace(found, device_id=len(devices), cpus=cpus, peaks=peaks_of(found.name)))
        links += [replace(link, a=numbers[link.a], b=numbers[link.b]) for link in driver.facts.links]
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
