"""Which devices a job gets, and in which order: the one decision behind placements and meshes alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..machine.facts import ClusterTopology, DeviceInfo
from ..watch.health import HealthState
from .link_costs import LinkTable, PairLink, Strength
from .problem import Problem
from .request import Health, PlacementRequest, unfit_devices, usable_memory_gb
from .search import search
from .text import explain, too_few
from .walk import CP, DP, PP, ROW_MAJOR, TP, MeshWalk, Sizes

__all__ = ["DIM_NAMES", "Placement", "PlacementRequest", "place"]

DIM_NAMES = ("dp", "pp", "cp", "tp")
_NO_HEALTH: Health = {}


@dataclass(frozen=True, kw_only=True)
class Placement:
    device_ids: tuple[int, ...]
    """In row-major order of a mesh [dp, pp, cp, tp]."""
    shape: Sizes
    slowest: dict[str, PairLink | None]
    """The slowest link along each dimension ("tp": between any two of a group); None where its size is 1."""
    exact: bool
    """No other placement is better; False: it could not be proved."""
    left_out: dict[int, str]
    """Devices that could not serve, and why."""
    reason: str


def place(
    topology: ClusterTopology,
    request: PlacementRequest,
    health: Health = _NO_HEALTH,
    *,
    measured_gb_s: Mapping[tuple[int, int], float] | None = None,
) -> Placement:
    """The devices for a request.

    Devices that work together are of one kind and, if GPUs, of one vendor: of the preferred vendor if it has
    enough, and GPUs before CPUs. Then fewer degraded devices are better; then, in this order, the faster
    slowest link inside tensor-parallel groups (all pairs), in context-parallel rings (neighbours), between a
    pipeline stage and the next, inside data-parallel groups (all pairs); then fewer devices of unknown
    health; then lower ids. How many groups share a link does not count.

    Args:
        topology: what there is.
        request: what is asked for.
        health: failed devices are never taken, degraded ones as few as possible.
        measured_gb_s: bandwidth by pair of device ids; it then decides instead of the kinds of the links.

    Raises:
        ValueError: too few devices, unknown ids, a pair that was not measured.
    """
    left_out = unfit_devices(topology, request, health)
    asked = None if request.devices is None else set(request.devices)
    named = [device for device in topology.devices if asked is None or device.device_id in asked]
    groups: dict[tuple[object, ...], list[DeviceInfo]] = {}
    for device in sorted(named, key=lambda device: device.device_id):
        if device.device_id not in left_out:
            key = (device.kind, device.vendor if device.kind == "gpu" else None)
            groups.setdefault(key, []).append(device)
    answers = [_Answer.of(topology, request, health, group, measured_gb_s) for group in groups.values()]
    found = [answer for answer in answers if answer is not None]
    if not found:
        raise ValueError(too_few(request, named, list(groups.values()), left_out))
    best, exact = max(found, key=lambda answer: answer.rank), all(answer.exact for answer in found)
    shape = {name: size for name, size in zip(DIM_NAMES, request.shape, strict=True) if size > 1}
    return Placement(
        device_ids=best.device_ids,
        shape=request.shape,
        slowest=best.slowest,
        exact=exact,
        left_out=left_out,
        reason=explain(named, health, best.device_ids, shape, best.slowest, best.assumed, exact, left_out),
    )


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The best of devices that can work together."""

    device_ids: tuple[int, ...]
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
        measured_gb_s: Mapping[tuple[int, int], float] | None,
    ) -> _Answer | None:
        if len(group) < request.size:
            return None
        ids = [device.device_id for device in group]
        table = LinkTable(topology, ids, measured_gb_s if request.size > 1 else None)
        memory = [usable_memory_gb(device) or 0.0 for device in group]
        problem = Problem(
            shape=request.shape,
            levels=table.levels,
            nodes=table.node_ids,
            degraded=_bits(health.get(id) is HealthState.DEGRADED for id in ids),
            unknown=_bits(health.get(id) is None for id in ids),
            fits=_fits(memory, request.needs_gb),
        )
        result = search(problem)
        if result is None:
            return None
        order, exact = result
        pairs = _linked(request.shape, order)
        slowest: dict[str, PairLink | None] = {}
        strengths: list[Strength] = []
        for dimension in (TP, CP, PP, DP):
            along = [pair for d, pair in pairs if d == dimension]
            worst = min(along, key=lambda pair: table.levels[pair], default=None)
            slowest[DIM_NAMES[dimension]] = link = None if worst is None else table.between(*worst)
            if link is not None:
                strengths.append(table.strength(link))
        chosen = tuple(ids[i] for i in order)
        return cls(
            device_ids=chosen,
            exact=exact,
            slowest={name: slowest[name] for name in DIM_NAMES},
            assumed=sorted({(ids[min(p)], ids[max(p)]) for _, p in pairs if table.between(*p).assumed}),
            rank=(
                group[0].kind == "gpu" and group[0].vendor is request.prefer_vendor,
                group[0].kind == "gpu",
                -sum(problem.degraded >> i & 1 for i in order),
                *strengths,
                -sum(problem.unknown >> i & 1 for i in order),
                tuple(-id for id in chosen),
            ),
        )


def _bits(flags: Iterable[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _fits(memory_gb: Sequence[float], needs_gb: Sequence[float]) -> tuple[int, ...]:
    """For each position of the mesh the devices with enough memory; empty if all have enough for any."""
    sets = {need: _bits(own >= need for own in memory_gb) for need in set(needs_gb)}
    return tuple(sets[need] for need in needs_gb) if len(sets) > 1 else ()


def _linked(shape: Sizes, order: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """(dimension, the indices of two devices) for all pairs that talk to each other along a dimension."""
    walk = MeshWalk.of(shape, ROW_MAJOR)
    return [
        (dimension, (order[step], order[other]))
        for step, earlier in enumerate(walk.pairs)
        for dimension, other in earlier
    ]
