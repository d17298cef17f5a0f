"""Arranging ranks in a mesh, and the ``torch.distributed`` mesh of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..groups import agree, tell_all
from ..machine.facts import ClusterTopology, DeviceInfo, DeviceLink, HardwareVendor, NodeTopology, RankPlace
from ..watch.health import HealthState
from ..watch.health.evidence import severity
from . import DIM_NAMES, Placement, place
from .request import NO_HEALTH, Health, PlacementRequest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)
_GPU_BACKENDS = {"cuda": "nccl", "xpu": "xccl"}


def place_ranks(
    topology: ClusterTopology,
    request: PlacementRequest,
    health: Health = NO_HEALTH,
    *,
    traffic: npt.ArrayLike | None = None,
) -> Placement:
    """Like :func:`place`, for ranks: the result has ranks instead of device ids.

    A rank has the links of its device. If a rank has no device of its own (more ranks than devices), all
    ranks are placed by node and NUMA node only.

    Args:
        topology: of a process group, with its ranks.
        request: ``devices`` names the devices whose ranks may be chosen.
        health: by device id.
        traffic: as of :func:`place`.

    Raises:
        ValueError: as of :func:`place`; no ranks.
    """
    if not topology.ranks:
        raise ValueError("topology must have ranks: discover it inside a process group")
    allowed = None if request.devices is None else set(request.devices)
    ranks = [p for p in topology.ranks if allowed is None or p.device_id in allowed]
    states = {p.rank: None if p.device_id is None else health.get(p.device_id) for p in ranks}
    asked = replace(request, devices=[p.rank for p in ranks])
    return place(_topology_of_ranks(topology), asked, states, traffic=traffic)


def create_device_mesh(
    topology: ClusterTopology,
    request: PlacementRequest,
    health: Health = NO_HEALTH,
    *,
    traffic: npt.ArrayLike | None = None,
) -> DeviceMesh:
    """A DeviceMesh over the ranks of the default process group. Every rank calls it, with the same arguments.

    It has all four dimensions, dp, pp, cp and tp, those of size 1 too: ``mesh["tp"]`` works for any sizes.
    (torchtitan's order is pp, dp, cp, tp; dimensions are addressed by name.) The ranks of a group are in the
    order of the mesh, which need not be ascending. Where it is not, a mesh that PyTorch flattens from several
    dimensions gets its ranks sorted: good for sums, not where the order of shards matters. Ranks that are
    started in the order of the placement (:func:`launch_hints`) are never moved.

    Raises:
        ValueError: as of :func:`place_ranks`.
        RuntimeError: no process group runs, or this PyTorch cannot keep the order of the ranks.
        GroupError: the ranks disagree, or one failed: as of :func:`.groups.agree`.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    if not dist.is_initialized():
        raise RuntimeError(
            "a DeviceMesh needs a process group: call torch.distributed.init_process_group first"
        )
    answers = agree(
        lambda: {"mesh": _mesh_of_world(topology, request, health, dist.get_world_size(), traffic)},
        what="arrange the mesh",
        fix="give the same request, topology, health and traffic on all ranks",
    )
    ranks = np.array(answers[0]["mesh"], np.int64)
    mesh = torch.from_numpy(ranks.astype(np.int32))
    backends = dist.get_backend_config() if torch.accelerator.is_available() else ""
    device_type = mesh_device_type(topology, backends)
    if all((np.diff(ranks, axis=dimension) > 0).all() for dimension in range(4)):
        return DeviceMesh(device_type, mesh, mesh_dim_names=DIM_NAMES)
    groups = [group_of_this_rank(ranks, dimension) for dimension in range(4)]
    return DeviceMesh.from_group(groups, device_type, mesh, mesh_dim_names=DIM_NAMES)


def _mesh_of_world(
    topology: ClusterTopology,
    request: PlacementRequest,
    health: Health,
    world_size: int,
    traffic: npt.ArrayLike | None,
) -> Any:
    """The ranks in nested lists [dp, pp, cp, tp], all of them: as :func:`place_ranks`."""
    if len(topology.ranks) != world_size:
        raise ValueError(
            f"topology must have the ranks of the process group, {world_size}, got {len(topology.ranks)}"
        )
    if request.size != world_size:
        raise ValueError(f"num_devices must be the world size, {world_size}, got {request.size}")
    placement = place_ranks(topology, request, health, traffic=traffic)
    logger.info("mesh of ranks: %s", placement.reason)
    return np.reshape(placement.device_ids, placement.shape).tolist()


def gather_health(read: Callable[[], Health]) -> dict[int, HealthState | None]:
    """Merge the health states known to the ranks of the default process group. Every rank calls it.

    Args:
        read: returns the states known to this rank.

    Raises:
        GroupError: as of :func:`.groups.tell_all`.
    """
    answers = tell_all(lambda: msgspec.json.encode(dict(read())), what="read the health of its devices")
    return worst_health(msgspec.json.decode(answer, type=dict[int, HealthState | None]) for answer in answers)


def worst_health(reports: Iterable[Health]) -> dict[int, HealthState | None]:
    """The worst state of each device that any report knows; None if none knows it."""
    found: dict[int, HealthState | None] = {}
    for report in reports:
        for device_id, state in report.items():
            known = [one for one in (found.get(device_id), state) if one is not None]
            found[device_id] = max(known, key=severity, default=None)
    return found


def group_of_this_rank(ranks: npt.NDArray[np.int64], dimension: int) -> ProcessGroup:
    """A process group for each line along a dimension, its ranks in the order of the line."""
    import torch.distributed as dist

    from ..links.collectives.flat import keeps_order
    from ..links.collectives.groups import timeout_of

    if not keeps_order():
        raise RuntimeError(
            "this PyTorch sorts the ranks of a process group, and the best mesh is "
            f"{ranks.tolist()}: use a newer PyTorch, or start the ranks in this order"
        )
    mine: ProcessGroup | None = None
    world = dist.group.WORLD
    timeout = None if world is None else timeout_of(world)  # a new group has torch's, of half an hour
    for line in np.moveaxis(ranks, dimension, -1).reshape(-1, ranks.shape[dimension]).tolist():
        group = dist.new_group(
            line, timeout=timeout, sort_ranks=False, group_desc=f"mesh_{DIM_NAMES[dimension]}"
        )
        if dist.get_rank() in line:
            mine = group
    assert mine is not None
    return mine


def mesh_device_type(topology: ClusterTopology, backends: str = "") -> str:
    """What PyTorch calls the devices of the ranks: cuda (AMD's too), xpu or cpu.

    Args:
        backends: of the process group, as in ``cpu:gloo,cuda:nccl``. Used if a rank has no device of its
            own: its GPU may not have been recognised.
    """
    own = list(_own_devices(topology).values())
    if None in own:
        return next((kind for kind in ("cuda", "xpu") if f"{kind}:{_GPU_BACKENDS[kind]}" in backends), "cpu")
    if any(device is None or device.kind == "cpu" for device in own):
        return "cpu"
    return "xpu" if any(d is not None and d.vendor is HardwareVendor.INTEL for d in own) else "cuda"


def _own_devices(topology: ClusterTopology) -> dict[int, DeviceInfo | None]:
    """The device of each rank, by rank."""
    devices: dict[int | None, DeviceInfo] = {device.device_id: device for device in topology.devices}
    return {where.rank: devices.get(where.device_id) for where in topology.ranks}


def _topology_of_ranks(topology: ClusterTopology) -> ClusterTopology:
    """The nodes with a device for each rank, whose id is the rank."""
    own = _own_devices(topology)
    bare = None in own.values()
    nodes = {}
    for node in topology.nodes.values():
        here = [where for where in topology.ranks if where.node_id == node.node_id]
        devices = []
        for where in here:
            device = own[where.rank]
            if bare or device is None:
                devices.append(_bare_rank(where, node, device))
            else:
                devices.append(replace(device, device_id=where.rank))
        known: dict[frozenset[int | None], DeviceLink] = {frozenset({e.a, e.b}): e for e in node.links}
        links = [
            replace(link, a=a.rank, b=b.rank)
            for a, b in combinations(here, 2)
            if not bare and (link := known.get(frozenset({a.device_id, b.device_id})))
        ]
        nodes[node.node_id] = replace(node, devices=tuple(devices), links=tuple(links))
    return ClusterTopology(nodes=nodes)


def _bare_rank(where: RankPlace, node: NodeTopology, device: DeviceInfo | None) -> DeviceInfo:
    """A rank without a device; its NUMA node is its device's or, if the node has just one, that one."""
    numa = device.numa_node if device else None
    if numa is None and len(node.numa_nodes) == 1:
        numa = node.numa_nodes[0].numa_id
    return DeviceInfo(
        device_id=where.rank,
        kind="cpu",
        index=where.local_rank,
        vendor=HardwareVendor.UNKNOWN,
        name=f"rank {where.rank}",
        numa_node=numa,
    )
