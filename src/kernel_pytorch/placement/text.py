"""A placement, or why there is none, in words."""

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


def explain(
    devices: Sequence[DeviceInfo],
    health: Health,
    chosen: Sequence[int],
    shape: Mapping[str, int],
    slowest: Mapping[str, PairLink | None],
    assumed: Sequence[tuple[int, int]],
    exact: bool,
    left_out: Mapping[int, str],
) -> str:
    """Why these devices, in this order, and what became of the others.

    Args:
        devices: those that there were to choose from.
        chosen: their ids, in the order of the mesh.
        shape: sizes of the dimensions that have one, by name.
        slowest: the slowest link along each dimension.
        assumed: pairs of ids whose link is not known.
        left_out: devices that could not serve, and why.
    """
    label = {device.device_id: device.label for device in devices}
    mesh = " x ".join(f"{name} {size}" for name, size in shape.items())
    moved = "" if list(chosen) == sorted(chosen) else " in another order"
    said = [_names(label, sorted(chosen)) + moved + (f" as {mesh}" if mesh else "")]
    links = [f"{link.text} {_GROUPS[name]}" for name in _GROUPS if (link := slowest[name]) is not None]
    if links:
        said.append("slowest links: " + ", ".join(links))
        said.append("no other choice is better" if exact else "the best that was found, others may be better")
    tensor = slowest["tp"]
    if tensor is not None and tensor.name == "network":
        said.append("tensor-parallel groups span nodes: a smaller tensor_parallel_size would be faster")
    if assumed:
        pairs = ", ".join(f"{label[a]}-{label[b]}" for a, b in assumed[:8])
        said.append(f"assumed to be as far apart as a node allows: {pairs}{', ...' if assumed[8:] else ''}")
    for state, words in ((HealthState.DEGRADED, "degraded, but needed"), (None, "of unknown health")):
        some = [id for id in chosen if health.get(id) is state]
        if some and any(health.get(device.device_id) for device in devices):
            said.append(f"{words}: {_names(label, some)}")
    said += _others(label, left_out, set(label) - set(chosen) - set(left_out))
    return "; ".join(said)


def too_few(
    request: PlacementRequest,
    devices: Sequence[DeviceInfo],
    groups: Sequence[Sequence[DeviceInfo]],
    left_out: Mapping[int, str],
) -> str:
    """Why a request cannot be met; ``groups`` are those devices that can work together."""
    label = {device.device_id: device.label for device in devices}
    most = max(map(len, groups), default=0)
    fit = sum(map(len, groups))
    if most >= request.size:
        said = [f"memory_gb={list(request.needs_gb)}: too few of {fit} devices have as much memory"]
    else:
        limit = f"num_devices must be at most {most} here, got {request.size}"
        said = [f"{limit}: of {len(devices)} devices {fit} fit"]
        if len(groups) > 1:
            kinds = (f"{len(group)} {group[0].vendor.value} {group[0].kind}s" for group in groups)
            said.append(f"different kinds do not work together: {', '.join(kinds)}")
    return "; ".join([*said, *_others(label, left_out, ())])


def _others(label: Mapping[int, str], left_out: Mapping[int, str], spare: Iterable[int]) -> list[str]:
    reasons: dict[str, list[int]] = {}
    for device_id, why in left_out.items():
        reasons.setdefault(why, []).append(device_id)
    said = [f"left out: {_names(label, ids)} {why}" for why, ids in reasons.items()]
    return said + ([f"not needed: {_names(label, sorted(spare))}"] if spare else [])


def _names(label: Mapping[int, str], ids: Sequence[int]) -> str:
    """Labels, runs of consecutive ids in short: gpu:0-7."""
    runs: list[list[int]] = []
    for id in ids:
        if runs and id == runs[-1][-1] + 1:
            runs[-1].append(id)
        else:
            runs.append([id])
    return ", ".join(label[run[0]] + (f"-{run[-1]}" if len(run) > 1 else "") for run in runs)
