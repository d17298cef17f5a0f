"""Why devices were chosen or left out, in words: the same for both choosers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..machine.facts import DeviceInfo
from ..watch.health import HealthState
from .link_costs import PairLink
from .request import Health, PlacementRequest

_GROUPS = {
    "tp": "inside tensor-parallel groups",
    "cp": "in context-parallel rings",
    "pp": "between pipeline stages",
    "dp": "inside data-parallel groups",
}


def names(kinds: Mapping[int, str], ids: Iterable[int]) -> str:
    """Devices as ``gpu:0-7, gpu:9``.

    Args:
        kinds: ``gpu`` or ``cpu``, by device id.
    """
    runs: list[tuple[str, int, int]] = []
    for id in sorted(ids):
        if runs and runs[-1][0] == kinds[id] and runs[-1][2] == id - 1:
            runs[-1] = (kinds[id], runs[-1][1], id)
        else:
            runs.append((kinds[id], id, id))
    return ", ".join(f"{kind}:{first}" + (f"-{last}" if last > first else "") for kind, first, last in runs)


def left_out_by_reason(kinds: Mapping[int, str], reasons: Mapping[int, str]) -> list[str]:
    """``left out: gpu:0-3 failed`` for each reason.

    Args:
        reasons: by device id.
    """
    ids: dict[str, list[int]] = {}
    for device_id, why in reasons.items():
        ids.setdefault(why, []).append(device_id)
    return [f"left out: {names(kinds, some)} {why}" for why, some in ids.items()]


def too_few(asked: int, usable: int, fitting: int, total: int) -> str:
    """Message for a request for more devices than can serve it.

    Args:
        usable: number of fitting devices that can work together.
        fitting: number of devices that fit.
        total: number of all devices.
    """
    return f"num_devices must be at most {usable} here, got {asked}: of {total} devices {fitting} fit"


def explain(
    devices: Sequence[DeviceInfo],
    health: Health,
    chosen: Sequence[int],
    shape: Mapping[str, int],
    slowest: Mapping[str, PairLink | None],
    assumed: Sequence[tuple[int, int]],
    links_exact: bool,
    exact: bool,
    left_out: Mapping[int, str],
) -> str:
    """Why a placement has these devices, in this order, and why the others are not used.

    Args:
        devices: all that could be chosen from.
        chosen: their ids, in the order of the mesh.
        shape: sizes above 1, by dimension.
        slowest: the slowest link along each dimension.
        assumed: pairs of ids whose link is not known.
        links_exact: whether it is proved that these links cannot be faster.
        exact: whether it is proved that nothing else is better either.
        left_out: devices that could not serve, and why.
    """
    kinds = {device.device_id: device.kind for device in devices}
    mesh = " x ".join(f"{name} {size}" for name, size in shape.items())
    moved = "" if list(chosen) == sorted(chosen) else " in another order"
    parts = [names(kinds, chosen) + moved + (f" as {mesh}" if mesh else "")]
    links = [f"{link.text} {_GROUPS[name]}" for name in _GROUPS if (link := slowest[name]) is not None]
    if links:
        parts.append("slowest links: " + ", ".join(links))
        if exact:
            parts.append("no other choice is better")
        elif links_exact:
            parts.append("no other choice has faster ones, but others may send less between hosts")
        else:
            parts.append("the best that was found, others may be better")
    tensor = slowest["tp"]
    if tensor is not None and tensor.kind is None:
        parts.append("tensor-parallel groups span nodes: a smaller tensor_parallel_size would be faster")
    if assumed:
        pairs = ", ".join(f"{kinds[a]}:{a}-{kinds[b]}:{b}" for a, b in assumed[:8])
        parts.append(f"assumed to be as far apart as a node allows: {pairs}{', ...' if assumed[8:] else ''}")
    for state, words in ((HealthState.DEGRADED, "degraded, but needed"), (None, "of unknown health")):
        some = [id for id in chosen if health.get(id) is state]
        if some and any(health.get(device.device_id) for device in devices):
            parts.append(f"{words}: {names(kinds, some)}")
    parts += left_out_by_reason(kinds, left_out)
    spare = set(kinds) - set(chosen) - set(left_out)
    return "; ".join([*parts, *([f"not needed: {names(kinds, spare)}"] if spare else [])])


def refuse(
    request: PlacementRequest,
    devices: Sequence[DeviceInfo],
    groups: Sequence[Sequence[DeviceInfo]],
    left_out: Mapping[int, str],
) -> str:
    """Why a placement is impossible.

    Args:
        devices: all that could be chosen from.
        groups: those that fit, by what can work together.
        left_out: devices that could not serve, and why.
    """
    usable, fitting = max(map(len, groups), default=0), sum(map(len, groups))
    if usable >= request.size:
        parts = [f"memory_gb={list(request.needs_gb)}: too few of {fitting} devices have as much memory"]
    else:
        parts = [too_few(request.size, usable, fitting, len(devices))]
        if len(groups) > 1:
            counts = (f"{len(group)} {group[0].vendor.value} {group[0].kind}s" for group in groups)
            parts.append(f"different kinds do not work together: {', '.join(counts)}")
    kinds = {device.device_id: device.kind for device in devices}
    return "; ".join([*parts, *left_out_by_reason(kinds, left_out)])
