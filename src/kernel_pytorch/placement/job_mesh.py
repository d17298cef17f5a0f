"""Meshes over the ranks of a running job, and how to start a job."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ..watch.cluster_view import ClusterView
from . import place
from .launch_hints import LaunchHints, launch_hints
from .mesh import create_device_mesh, gather_health
from .request import PlacementRequest

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch.distributed.device_mesh import DeviceMesh


def create_job_mesh(
    view: ClusterView, request: PlacementRequest, traffic: npt.ArrayLike | None = None
) -> DeviceMesh:
    """A mesh of all ranks with dimensions dp, pp, cp and tp: see :func:`.mesh.create_device_mesh`.

    Every rank calls it with the same request and traffic (as of :func:`.placement.place`), after
    ``init_process_group``. Machines and health are gathered from all ranks first. If each rank has its own
    device, rank 0 prints to stderr how to start the ranks in the order of the mesh: torchrun's
    --numa-binding, the CPUs next to each device.

    Raises:
        ValueError: the numbers of devices and ranks differ, a device has failed, or the traffic is of another
            shape.
        RuntimeError: no process group runs, or the ranks disagree.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        raise RuntimeError("a mesh needs a process group: call torch.distributed.init_process_group first")
    topology = view.discover()
    health = gather_health(view.states)
    mesh = create_device_mesh(topology, request, health, traffic=traffic)
    own = [rank.device_id for rank in topology.ranks if rank.device_id is not None]
    if dist.get_rank() == 0 and len(set(own)) == request.size:
        best = place(topology, replace(request, devices=own), health, traffic=traffic)
        print(f"to start ranks in the order of the mesh:\n{launch_hints(topology, best)}", file=sys.stderr)
    return mesh


def job_launch_hints(view: ClusterView, request: PlacementRequest) -> LaunchHints:
    """How to start a job on the best devices: commands, NUMA binding, CPUs of each rank.

    Raises:
        ValueError: as of :func:`.placement.place`.
    """
    return launch_hints(view.topology, place(view.topology, request, view.states()))
