"""Meshes of a job's ranks, by the links between their devices."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ..placement import PlacementRequest, place
from ..placement.launch_hints import LaunchHints, launch_hints
from ..placement.mesh import create_device_mesh, gather_health
from .hardware_discovery import HardwareTopologyManager

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class DeviceMeshOptimizer:
    """Arranges ranks in meshes by the links between their devices.

    Args:
        topology_manager: discovers the topology, and knows the health of this node's devices.
    """

    def __init__(self, topology_manager: HardwareTopologyManager) -> None:
        self._manager = topology_manager

    def create_optimal_mesh(
        self,
        world_size: int,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        context_parallel_size: int = 1,
        data_parallel_size: int | None = None,
    ) -> DeviceMesh:
        """A mesh of all ranks with dimensions dp, pp, cp and tp: see :func:`.mesh.create_device_mesh`.

        Every rank calls it with the same arguments, after ``init_process_group``. Machines and health are
        gathered from all ranks first. Where each rank has a device of its own, rank 0 prints to stderr how to
        start them so that none need be moved: torchrun's --numa-binding, the CPUs next to each device.

        Args:
            data_parallel_size: default: what the other sizes leave of ``world_size``.

        Raises:
            ValueError: sizes that do not multiply to ``world_size``, or another one than the process group's;
                a device has failed.
            RuntimeError: no process group runs, or the ranks disagree.
        """
        import torch.distributed as dist

        request = _request(
            world_size,
            tensor_parallel_size,
            pipeline_parallel_size,
            context_parallel_size,
            data_parallel_size,
        )
        if not dist.is_initialized():
            raise RuntimeError(
                "a mesh needs a process group: call torch.distributed.init_process_group first"
            )
        topology = self._manager.discover_topology()
        health = gather_health(self._manager.health)
        mesh = create_device_mesh(topology, request, health)
        own = [rank.device_id for rank in topology.ranks if rank.device_id is not None]
        if dist.get_rank() == 0 and len(set(own)) == world_size:
            best = place(topology, replace(request, devices=own), health)
            print(
                f"to start ranks in the order of the mesh:\n{launch_hints(topology, best)}", file=sys.stderr
            )
        return mesh

    def launch_hints(
        self,
        world_size: int,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        context_parallel_size: int = 1,
        data_parallel_size: int | None = None,
    ) -> LaunchHints:
        """How to start a job on the best devices, to be printed: commands, NUMA binding, CPUs of each rank.

        Raises:
            ValueError: as of :func:`.placement.place`.
        """
        request = _request(
            world_size,
            tensor_parallel_size,
            pipeline_parallel_size,
            context_parallel_size,
            data_parallel_size,
        )
        topology = self._manager.cluster_topology
        return launch_hints(topology, place(topology, request, self._manager.health()))


def create_device_mesh_optimizer(topology_manager: HardwareTopologyManager) -> DeviceMeshOptimizer:
    return DeviceMeshOptimizer(topology_manager)


def _request(world_size: int, tp: int, pp: int, cp: int, dp: int | None) -> PlacementRequest:
    return PlacementRequest(
        num_devices=world_size,
        data_parallel_size=dp,
        pipeline_parallel_size=pp,
        context_parallel_size=cp,
        tensor_parallel_size=tp,
    )
