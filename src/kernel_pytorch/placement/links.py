"""Choosing and ordering devices by the links between them, for placements and meshes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy.typing as npt

from ..links.order import checked_traffic
from ..machine.facts import ClusterTopology, DeviceInfo, NodeTopology
from ..watch.health import HealthState
from ..watch.health.evidence import severity
from .link_costs import LinkTable, PairLink, Strength
from .request import NO_HEALTH, Health, PlacementRequest, unfit_devices, usable_memory_bytes
from .search import Problem, assign
from .text import explain, refuse
from .walk import CP, DP, PP, TP, Sizes, Traffic, around_rings, links

__all__ = ["DIM_NAMES", "Placement", "PlacementRequest", "Ranking", "place", "rank_devices"]

DIM_NAMES = ("dp", "pp", "cp", "tp")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The devices of a mesh and the links between them."""

    device_ids: tuple[int, ...]
    """In row-major order of a mesh [dp, pp, cp, tp]."""
    shape: Sizes
    slowest: dict[str, PairLink | None]
    """The slowest link along each dimension ("tp": between any two of a group); None where its size is 1."""
    busiest_host_link: float
    """The most of ``traffic`` that a host sends to others, or receives from them."""
    links_exact: bool
    """Whether it is proved that no other placement has fewer degraded devices or faster slowest links."""
    exact: bool
    """Whether it is proved that no other placement is better, except by lower ids."""
    left_out: dict[int, str]
    """Devices that could not serve, and why."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Devices for a job on one device."""

    device_ids: tuple[int, ...]
    """Devices that could each run the job, best first."""
    left_out: dict[int, str]
    """Devices that could not, and why."""


def place(
    topology: ClusterTopology,
    request: PlacementRequest,
    health: Health = NO_HEALTH,
    *,
    free_bytes: Mapping[int, int] | None = None,
    measured_gb_s: Mapping[tuple[int, int], float] | None = None,
    traffic: npt.ArrayLike | None = None,
) -> Placement:
    """Choose devices for a request, and their order.

    Devices that work together are of one kind and, if GPUs, of one vendor: the preferred vendor if it has
    enough, and GPUs before CPUs. Then fewer degraded devices are better; then, in this order, the faster
    slowest link inside tensor-parallel groups (all pairs), in context-parallel rings (neighbours), between a
    pipeline stage and the next, inside data-parallel groups (all pairs); then less traffic over the busiest
    host's link, of what the host sends or of what it receives; then fewer devices of unknown health; then
    lower ids.

    Args:
        topology: the devices and the links between them.
        request: the shape of the mesh, and what each device must have.
        health: failed devices are never taken, degraded ones as few as possible.
        free_bytes: free memory by device id; default for a device: all its memory.
        measured_gb_s: bandwidth by pair of device ids, used instead of the kinds of the links.
        traffic: [n, n], bytes from the position of the row to that of the column, in row-major order of the
            mesh; default: along each dimension each position sends 1 to the next, around a ring (in pp: along
            a chain).

    Raises:
        ValueError: too few devices, unknown ids, a pair that was not measured, or traffic of another shape,
            negative or not finite.
    """
    sent = around_rings(request.shape) if traffic is None else checked_traffic(traffic, request.size)
    free_bytes = free_bytes or {}
    named, left_out = _candidates(topology, request, health, free_bytes)
    groups: dict[tuple[object, ...], list[DeviceInfo]] = {}
    for device in sorted(named, key=lambda device: device.device_id):
        if device.device_id not in left_out:
            key = (device.kind, device.vendor if device.kind == "gpu" else None)
            groups.setdefault(key, []).append(device)
    answers = [
        _Answer.of(topology, request, health, group, free_bytes, measured_gb_s, sent)
        for group in groups.values()
    ]
    found = [answer for answer in answers if answer is not None]
    if not found:
        raise ValueError(refuse(request, named, list(groups.values()), left_out))
    best = max(found, key=lambda answer: answer.rank)
    exact, links_exact = (
        all(proved) for proved in zip(*((a.exact, a.links_exact) for a in found), strict=True)
    )
    shape = {name: size for name, size in zip(DIM_NAMES, request.shape, strict=True) if size > 1}
    return Placement(
        device_ids=best.device_ids,
        shape=request.shape,
        slowest=best.slowest,
        busiest_host_link=best.busiest,
        links_exact=links_exact,
        exact=exact,
        left_out=left_out,
        reason=explain(
            named, health, best.device_ids, shape, best.slowest, best.assumed, links_exact, exact, left_out
        ),
    )


def rank_devices(
    topology: ClusterTopology,
    request: PlacementRequest,
    health: Health = NO_HEALTH,
    *,
    free_bytes: Mapping[int, int] | None = None,
) -> Ranking:
    """All devices that could each serve a request for one, in the order in which :func:`place` takes them.

    Raises:
        ValueError: a request for more than one device, unknown ids, or no device can serve.
    """
    if request.size != 1:
        raise ValueError(f"num_devices must be 1 to rank devices, got {request.size}")
    named, left_out = _candidates(topology, request, health, free_bytes or {})
    fit = [device for device in named if device.device_id not in left_out]
    if not fit:
        raise ValueError(refuse(request, named, [], left_out))

    def order(device: DeviceInfo) -> tuple[object, ...]:
        gpu = device.kind == "gpu"
        preferred = gpu and device.vendor is request.prefer_vendor
        return not preferred, not gpu, severity(health.get(device.device_id)), device.device_id

    ranked = sorted(fit, key=order)
    return Ranking(device_ids=tuple(device.device_id for device in ranked), left_out=left_out)


def _candidates(
    topology: ClusterTopology, request: PlacementRequest, health: Health, free_bytes: Mapping[int, int]
) -> tuple[list[DeviceInfo], dict[int, str]]:
    """The devices that a request allows, and why some of them cannot serve it."""
    left_out = unfit_devices(topology, request, health, free_bytes)
    allowed = None if request.devices is None else set(request.devices)
    named = [device for device in topology.devices if allowed is None or device.device_id in allowed]
    return named, left_out


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The best placement on devices that can work together."""

    device_ids: tuple[int, ...]
    busiest: float
    """The traffic over the busiest host's link."""
    links_exact: bool
    exact: bool
    slowest: dict[str, PairLink | None]
    assumed: list[tuple[int, int]]
    """Pairs whose link is not known."""
    rank: tuple[object, ...]

    @classmethod
    def of(
        cls,
        topology: ClusterTopology,
        request: PlacementRequest,
        health: Health,
        group: Sequence[DeviceInfo],
        free_bytes: Mapping[int, int],
        measured_gb_s: Mapping[tuple[int, int], float] | None,
        traffic: Traffic,
    ) -> _Answer | None:
        if len(group) < request.size:
            return None
        ids = [device.device_id for device in group]
        table = LinkTable(topology, ids, measured_gb_s if request.size > 1 else None)
        memory_gb = [(usable_memory_bytes(device, free_bytes) or 0) / 1e9 for device in group]
        problem = Problem(
            shape=request.shape,
            levels=table.levels,
            degraded=_bits(health.get(id) is HealthState.DEGRADED for id in ids),
            unknown=_bits(health.get(id) is None for id in ids),
            fits=_fits(memory_gb, request.needs_gb),
            hosts=_hosts([topology.nodes[node_id] for node_id in table.node_ids]),
            traffic=traffic,
        )
        found = assign(problem)
        if found is None:
            return None
        order = found.order
        pairs = list(links(request.shape, order))
        slowest: dict[str, PairLink | None] = {}
        strengths: list[Strength] = []
        for dimension in (TP, CP, PP, DP):
            along = [pair for d, pair in pairs if d == dimension]
            worst = min(along, key=lambda pair: table.levels[pair], default=None)
            slowest[DIM_NAMES[dimension]] = link = None if worst is None else table.between(*worst)
            if link is not None:
                strengths.append(table.strength(link))
        chosen = tuple(ids[i] for i in order)
        degraded, *_, busiest, unknown = problem.score(order)
        return cls(
            device_ids=chosen,
            busiest=-busiest,
            links_exact=found.links_exact,
            exact=found.exact,
            slowest={name: slowest[name] for name in DIM_NAMES},
            assumed=sorted({(ids[min(p)], ids[max(p)]) for _, p in pairs if table.between(*p).assumed}),
            rank=(
                group[0].kind == "gpu" and group[0].vendor is request.prefer_vendor,
                group[0].kind == "gpu",
                degraded,
                *strengths,
                busiest,
                unknown,
                tuple(-id for id in chosen),
            ),
        )


def _bits(flags: Iterable[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _hosts(nodes: Sequence[NodeTopology]) -> tuple[int, ...]:
    """A number for the host of each device. Nodes of one boot and network namespace share its links.

    Args:
        nodes: of each device.
    """
    known = [node.boot_id and node.network_namespace for node in nodes]
    keys = [
        (node.boot_id, node.network_namespace) if own else node.node_id
        for node, own in zip(nodes, known, strict=True)
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


def _fits(memory_gb: Sequence[float], needs_gb: Sequence[float]) -> tuple[int, ...]:
    """For each position, the devices with enough memory; empty if the same have enough for every position."""
    sets = {need: _bits(own >= need for own in memory_gb) for need in set(needs_gb)}
    return tuple(sets[need] for need in needs_gb) if len(sets) > 1 else ()
