"""A drawing of a node: NUMA nodes with their CPUs, devices and interfaces, and the links between devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...machine.facts import DeviceInfo, LinkKind, NetworkInterface, NodeTopology
from ...machine.files import format_cpu_list
from ..errors import CommandError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = (".svg", ".png", ".pdf")
_COLOURS = {
    LinkKind.NVLINK: "tab:green",
    LinkKind.PCIE_SWITCH: "tab:blue",
    LinkKind.HOST_BRIDGE: "tab:orange",
    LinkKind.SOCKET: "lightgrey",
}
_WIDTH, _GAP = 4.0, 1.2


def draw(node: NodeTopology, path: Path) -> None:
    """Draw ``node`` into ``path``.

    Raises:
        CommandError: the file's suffix is not supported, or matplotlib is not installed.
    """
    if path.suffix not in _FORMATS:
        raise CommandError(f"--plot writes {', '.join(_FORMATS)}, got {path}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError("--plot needs matplotlib: pip install matplotlib") from error
    columns = {numa.numa_id: number for number, numa in enumerate(node.numa_nodes)}
    outside = len(columns) if len(columns) > 1 else 0  # a column at the right for items without a NUMA node
    gpus: dict[int, list[DeviceInfo]] = {}  # by column
    for device in node.devices:
        if device.kind == "gpu":
            column = outside if device.numa_node is None else columns.get(device.numa_node, outside)
            gpus.setdefault(column, []).append(device)
    nics: dict[int, list[NetworkInterface]] = {}
    for nic in node.network_interfaces:
        if nic.kind not in ("loopback", "virtual"):
            column = outside if nic.numa_node is None else columns.get(nic.numa_node, outside)
            nics.setdefault(column, []).append(nic)
    count = max(len(columns), 1) + (len(columns) > 1 and (outside in gpus or outside in nics))
    rows = max((len(devices) for devices in gpus.values()), default=0)
    height = rows + max((len(found) for found in nics.values()), default=0)
    figure = Figure(figsize=(2 + 3.2 * count, 2 + 0.5 * height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title(f"{node.hostname}: {len(node.limits.cpus)} CPUs to use")
    for numa in node.numa_nodes:
        cores = sum(
            any(cpu in numa.cpus for cpu in core) for package in node.packages for core in package.cores
        )
        memory = "memory unknown" if numa.memory_bytes is None else f"{numa.memory_bytes / 1e9:.0f} GB"
        text = f"NUMA node {numa.numa_id}\n{cores} cores, CPUs {_short(numa.cpus)}\n{memory}"
        _box(axes, columns[numa.numa_id], 0, text, "whitesmoke", height=1.6)
    centres: dict[int, tuple[float, float]] = {}
    for column, devices in gpus.items():
        for row, device in enumerate(devices):
            memory = "" if device.memory_bytes is None else f", {device.memory_bytes / 1e9:.0f} GB"
            text = f"{device.label}  {device.name.removeprefix('NVIDIA ')}{memory}"
            centres[device.device_id] = _box(axes, column, row + 1, text, "honeydew")
    for column, found in nics.items():
        for row, nic in enumerate(found, rows + 1):
            speed = "" if nic.speed_gbit_s is None else f", {nic.speed_gbit_s:g} Gbit/s"
            _box(axes, column, row, f"{nic.name}  {nic.kind or 'interface'}{speed}", "aliceblue")
    _links(axes, node, centres)
    if centres and node.links:
        figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    axes.set_xlim(-0.5, count * (_WIDTH + _GAP))
    axes.set_ylim(-height - 1.2, 1.8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _box(
    axes: Axes, column: int, row: int, text: str, colour: str, height: float = 0.7
) -> tuple[float, float]:
    from matplotlib.patches import FancyBboxPatch

    x, y = column * (_WIDTH + _GAP), -float(row)
    corner = (x, y if row == 0 else y - 0.35)
    axes.add_patch(
        FancyBboxPatch(
            corner, _WIDTH, height, boxstyle="round,pad=0.02", facecolor=colour, edgecolor="grey", zorder=2
        )
    )
    centre = (x + _WIDTH / 2, corner[1] + height / 2)
    axes.text(*centre, text, ha="center", va="center", fontsize=7, zorder=3)
    return centre


def _links(axes: Axes, node: NodeTopology, centres: dict[int, tuple[float, float]]) -> None:
    labelled: set[LinkKind] = set()
    for link in sorted(node.links, key=lambda link: -link.kind):
        if link.a not in centres or link.b not in centres:
            continue
        (x0, y0), (x1, y1) = centres[link.a], centres[link.b]
        bend = _WIDTH / 2 + 0.15 * abs(y1 - y0)
        xs = (x0, x0 + bend, x1 + bend, x1) if x0 == x1 else (x0, x1)
        ys = (y0, y0, y1, y1) if x0 == x1 else (y0, y1)
        label = None if link.kind in labelled else link.kind.label
        labelled.add(link.kind)
        axes.plot(xs, ys, color=_COLOURS[link.kind], linewidth=1, alpha=0.6, zorder=1, label=label)


def _short(cpus: tuple[int, ...]) -> str:
    text = format_cpu_list(cpus) or "none"
    return text if len(text) <= 24 else text[:21] + "..."
