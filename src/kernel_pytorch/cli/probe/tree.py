"""The report of a probe as a tree of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ...machine.facts import Cache, DeviceInfo, LinkKind, Missing, NetworkInterface, NodeTopology
from ...machine.files import format_cpu_list
from ...machine.measured import MeasuredPeaks
from ...watch.quantities import reading_text
from .report import ProbeReport


@dataclass
class Branch:
    """A line of the tree and the branches below it."""

    text: str
    below: list[Branch] = field(default_factory=list)


def tree_lines(branch: Branch, *, ascii_only: bool = False) -> Iterator[str]:
    """The lines of the tree; ``ascii_only`` draws its branches in ASCII."""
    tee, last, bar = ("|- ", "`- ", "|  ") if ascii_only else ("├─ ", "└─ ", "│  ")
    yield branch.text
    for number, child in enumerate(branch.below):
        at_end = number == len(branch.below) - 1
        lines = tree_lines(child, ascii_only=ascii_only)
        yield (last if at_end else tee) + next(lines)
        yield from (("   " if at_end else bar) + line for line in lines)


def report_tree(report: ProbeReport) -> Branch:
    """The tree of a report."""
    node = report.node
    root = Branch(f"{node.hostname}  {_usable(node)}")
    root.below.append(_cpus(node))
    devices = Branch(_counted(len(node.devices), "device") + _devices_note(node))
    devices.below = [_device(device) for device in node.devices] + _peaks(node.devices)
    root.below.append(devices)
    if node.links:
        root.below.append(_links(node))
    interfaces = [
        Branch(_interface_text(found)) for found in node.network_interfaces if found.kind != "loopback"
    ]
    root.below.append(Branch("network", interfaces or [Branch("none but loopback")]))
    disks = [
        Branch(f"{disk.name}  {disk.kind or 'kind unknown'}, {_gb(disk.size_bytes)}{_after(disk.model)}")
        for disk in node.storage
    ]
    root.below.append(Branch("storage", disks or [Branch("no block device")]))
    if report.measured is not None:
        root.below.append(Branch("measured", [_measured(found) for found in report.measured]))
    if node.missing:
        root.below.append(Branch("not seen", [Branch(_missing_text(missing)) for missing in node.missing]))
    return root


def _usable(node: NodeTopology) -> str:
    limits, gpus = node.limits, [device for device in node.devices if device.kind == "gpu"]
    cpus = _counted(len(limits.cpus), "CPU")
    if limits.usable_cpus < len(limits.cpus):
        cpus += f" for {limits.usable_cpus:g} CPU seconds a second"
    parts = [cpus, "memory unknown" if node.memory_gb is None else f"{node.memory_gb:.1f} GB"]
    if gpus:
        usable = sum(gpu.hidden is None for gpu in gpus)
        parts.insert(0, ("" if usable == len(gpus) else f"{usable} of ") + _counted(len(gpus), "GPU"))
    return "may use " + ", ".join(parts)


def _cpus(node: NodeTopology) -> Branch:
    branch = Branch("CPUs")
    for package in node.packages:
        cpus = f"{_counted(len(package.cores), 'core')}, CPUs {format_cpu_list(package.cpus)}"
        branch.below.append(
            Branch(f"package {package.package_id}  {package.model or 'model unknown'}, {cpus}")
        )
    if node.caches:
        branch.below.append(Branch(f"caches  {_cache_text(node.caches)}"))
    for numa in node.numa_nodes:
        memory = "memory unknown" if numa.memory_bytes is None else _gb(numa.memory_bytes)
        pages = ", ".join(
            f"{page.free}/{page.total} huge pages of {_binary(page.size_bytes)} free"
            for page in numa.huge_pages
            if page.total
        )
        distances = " ".join(map(str, numa.distances))
        text = f"NUMA node {numa.numa_id}  {memory}, CPUs {format_cpu_list(numa.cpus) or 'none'}"
        branch.below.append(Branch(f"{text}, distances {distances or 'unknown'}{_after(pages)}"))
    return branch


def _cache_text(caches: Iterable[Cache]) -> str:
    counted = Counter((cache.level, cache.type, cache.size_bytes, len(cache.cpus)) for cache in caches)
    letters = {"data": "d", "instruction": "i", "unified": ""}
    return ", ".join(
        f"{count} x L{level}{letters[kind]} {_binary(size)}" + (f" for {sharing} CPUs" if sharing > 1 else "")
        for (level, kind, size, sharing), count in counted.items()
    )


def _devices_note(node: NodeTopology) -> str:
    return (
        "" if any(device.kind == "gpu" for device in node.devices) else ": no accelerator, the CPU packages"
    )


def _device(device: DeviceInfo) -> Branch:
    shared = " shared with the host" if device.memory_shared else ""
    units = {"gpu": "SM" if device.vendor.value == "nvidia" else "compute unit", "cpu": "core"}[device.kind]
    facts = [
        device.name,
        f"architecture {device.architecture}" if device.architecture else None,
        f"{_gb(device.memory_bytes)}{shared}" if device.memory_bytes else None,
        _counted(device.compute_units, units) if device.compute_units else None,
        f"up to {device.boost_clock_mhz} MHz" if device.boost_clock_mhz else None,
        None if device.power_limit_w is None else f"power limit {device.power_limit_w:.0f} W",
        None if device.numa_node is None else f"NUMA node {device.numa_node}",
    ]
    branch = Branch(f"{device.label}  " + ", ".join(filter(None, facts)) + _hidden(device.hidden))
    if device.pci:
        pci = device.pci
        now, most = _pcie(pci.generation, pci.width), _pcie(pci.generation_max, pci.width_max)
        branch.below.append(Branch(f"PCI {pci.address}, link {now} of {most}"))
    modes = [
        f"{name} {'on' if value else 'off'}"
        for name, value in (
            ("MIG", device.mig_enabled),
            ("ECC", device.ecc_enabled),
            ("persistence", device.persistence_mode),
        )
        if value is not None
    ]
    if modes:
        branch.below.append(Branch(", ".join(modes)))
    for instance in device.mig_instances:
        memory = "memory unknown" if instance.memory_bytes is None else _gb(instance.memory_bytes)
        text = f"MIG instance {instance.name or instance.uuid}  {memory}"
        branch.below.append(Branch(text + ("" if device.hidden else _hidden(instance.hidden))))
    branch.below.append(Branch(f"now  {reading_text(device.reading)}"))
    return branch


def _hidden(why: str | None) -> str:
    return f": {why}" if why else ""


def _peaks(devices: Iterable[DeviceInfo]) -> list[Branch]:
    """A branch for each model."""
    models = {device.name: device.peaks for device in devices if device.peaks}
    found = []
    for name, peaks in models.items():
        flops = ", ".join(f"{dtype} {value / 1e12:g}" for dtype, value in peaks.flops.items())
        figures = f"{flops} TFLOP/s, {peaks.memory_gb_s:g} GB/s"
        found.append(Branch(f"peaks of {name}  {figures} ({peaks.source})"))
    return found


def _links(node: NodeTopology) -> Branch:
    grouped: dict[tuple[LinkKind, int | None, int | None, float | None], list[str]] = {}
    for link in node.links:
        key = (link.kind, link.version, link.lanes, link.gb_s)
        grouped.setdefault(key, []).append(f"{link.a}-{link.b}")
    branch = Branch("links between devices")
    every = len(node.devices) * (len(node.devices) - 1) // 2
    for (kind, version, lanes, gb_s), pairs in sorted(grouped.items(), key=lambda item: item[0][0]):
        text = (
            kind.label
            + (f" {version}" if version else "")
            + (f", {_counted(lanes, 'lane')}" if lanes else "")
        )
        speed = "" if gb_s is None else f", {gb_s:.0f} GB/s each way"
        between = "all pairs" if len(pairs) == every > 1 else " ".join(pairs)
        branch.below.append(Branch(f"{text}{speed}:  {between}"))
    return branch


def _interface_text(found: NetworkInterface) -> str:
    carrier = {True: "up", False: "no carrier", None: "carrier unknown"}[found.carrier]
    parts = [
        found.kind,
        carrier,
        "speed unknown" if found.speed_gbit_s is None else f"{found.speed_gbit_s:g} Gbit/s",
        f"MTU {found.mtu}" if found.mtu else None,
        found.driver,
        f"RDMA device {found.rdma_device}" if found.rdma_device else None,
        None if found.numa_node is None else f"NUMA node {found.numa_node}",
    ]
    return f"{found.name}  " + ", ".join(filter(None, parts))


def _measured(found: MeasuredPeaks) -> Branch:
    threads = f", {_counted(found.threads, 'thread')}" if found.threads else ""
    parts = [
        f"{name} {_flops(flops)}{_share(found.flops_share.get(name))}, n = {found.matrix_sizes[name]}"
        for name, flops in found.flops.items()
    ]
    if found.memory_gb_s is not None:
        parts.append(f"copy {found.memory_gb_s:.3g} GB/s{_share(found.memory_share)}")
    parts += [f"{what} not measured: {why}" for what, why in found.unmeasured.items()]
    return Branch(f"device {found.device_id}  matrix products{threads}: {'; '.join(parts)}")


def _flops(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"


def _share(share: float | None) -> str:
    return "" if share is None else f" ({share:.0%} of peak)"


def _missing_text(missing: Missing) -> str:
    return f"{missing.what}: {missing.why}" + (f" -> {missing.fix}" if missing.fix else "")


def _pcie(generation: int | None, width: int | None) -> str:
    return f"gen {'?' if generation is None else generation} x{'?' if width is None else width}"


def _after(text: str | None) -> str:
    return f", {text}" if text else ""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _binary(size_bytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= size:
            return f"{size_bytes / size:g} {unit}"
    return f"{size_bytes} B"
