"""All of a job's hardware: devices, their temperature, power and health, and meshes over them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..machine.current_device import current_device
from ..machine.facts import HardwareVendor
from ..placement import PlacementRequest, rank_devices
from ..placement.job_mesh import create_job_mesh, job_launch_hints
from ..placement.launch_hints import LaunchHints
from .fault_tolerance import HardwareHealthMonitor
from .hardware_discovery import HardwareTopologyManager
from .thermal_power_management import PowerEfficiencyOptimizer, ThermalAwareScheduler

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)
__all__ = ["DeviceMeshOptimizer", "HardwareAdapter", "create_device_mesh_optimizer"]


class DeviceMeshOptimizer:
    """Arranges ranks in meshes by the links between their devices."""

    def __init__(self, topology_manager: HardwareTopologyManager) -> None:
        self.view = topology_manager.view

    def create_optimal_mesh(
        self,
        world_size: int,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        context_parallel_size: int = 1,
        data_parallel_size: int | None = None,
    ) -> DeviceMesh:
        """See :func:`.create_job_mesh`. ``data_parallel_size`` None: the world size divided by the others."""
        sizes = tensor_parallel_size, pipeline_parallel_size, context_parallel_size, data_parallel_size
        return create_job_mesh(self.view, _request(world_size, *sizes))

    def launch_hints(
        self,
        world_size: int,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        context_parallel_size: int = 1,
        data_parallel_size: int | None = None,
    ) -> LaunchHints:
        """See :func:`.job_launch_hints`."""
        sizes = tensor_parallel_size, pipeline_parallel_size, context_parallel_size, data_parallel_size
        return job_launch_hints(self.view, _request(world_size, *sizes))


def create_device_mesh_optimizer(topology_manager: HardwareTopologyManager) -> DeviceMeshOptimizer:
    """An optimizer for the devices of a manager."""
    return DeviceMeshOptimizer(topology_manager)


def _request(world_size: int, tp: int, pp: int, cp: int, dp: int | None) -> PlacementRequest:
    return PlacementRequest(
        num_devices=world_size,
        data_parallel_size=dp,
        pipeline_parallel_size=pp,
        context_parallel_size=cp,
        tensor_parallel_size=tp,
    )


class HardwareAdapter:
    """Monitoring, scheduling, power limits and meshes for a job's devices.

    Args:
        enable_monitoring: whether a thread takes a reading each second; if not, each query takes one.
        thermal_threshold: degrees Celsius at or above which a device gets no job.
        power_budget_w: bound on what all devices may draw together; None: no bound.
        topology_manager: to use instead of one for this machine; :meth:`shutdown` leaves it running.
    """

    def __init__(
        self,
        enable_monitoring: bool = True,
        thermal_threshold: float = 85.0,
        power_budget_w: float | None = None,
        *,
        topology_manager: HardwareTopologyManager | None = None,
    ) -> None:
        self._own_manager = topology_manager is None
        self.topology_manager = topology_manager or HardwareTopologyManager(enable_monitoring)
        try:
            manager = self.topology_manager
            self.thermal_scheduler = ThermalAwareScheduler(manager, thermal_threshold, power_budget_w)
            self.power_optimizer = PowerEfficiencyOptimizer(manager, power_budget_w)
            self.mesh_optimizer = DeviceMeshOptimizer(manager)
            self.health_monitor = HardwareHealthMonitor(manager, enable_monitoring)
        except BaseException:
            if self._own_manager:
                self.topology_manager.shutdown()
            raise

    @contextmanager
    def optimal_device_context(
        self,
        memory_requirement_gb: float = 0.0,
        compute_requirement_tflops: float = 0.0,
        prefer_vendor: HardwareVendor | None = None,
    ) -> Iterator[list[int]]:
        """:meth:`get_optimal_device_placement`, those that torch sees; the first is its current device."""
        ids = self.get_optimal_device_placement(
            memory_requirement_gb, compute_requirement_tflops, prefer_vendor
        )
        devices = {device.device_id: device for device in self.topology_manager.cluster_topology.devices}
        with current_device([devices[device_id] for device_id in ids]) as usable:
            yield [device.device_id for device in usable]

    def get_optimal_device_placement(
        self,
        memory_requirement_gb: float = 0.0,
        compute_requirement_tflops: float = 0.0,
        prefer_vendor: HardwareVendor | None = None,
    ) -> list[int]:
        """Ids of this node's devices that could each run a job, best first: :func:`.rank_devices`."""
        view = self.topology_manager.view
        states = view.states()  # takes a reading if no thread does
        request = PlacementRequest(
            num_devices=1,
            memory_gb=memory_requirement_gb,
            tflops=compute_requirement_tflops,
            prefer_vendor=prefer_vendor,
            devices=view.own_ids,
        )
        ranking = rank_devices(view.topology, request, states, free_bytes=view.free_bytes())
        for device_id, why in ranking.left_out.items():
            logger.info("left out: device %d %s", device_id, why)
        return list(ranking.device_ids)

    def optimize_for_workload(
        self, job_id: str, required_devices: int, estimated_power_per_device: float = 300.0
    ) -> dict[str, Any]:
        """As :meth:`.ThermalAwareScheduler.schedule_job`, with devices in order of :meth:`.JobDevices.order`.

        ``placement`` in the result describes their links.
        """
        result = self.thermal_scheduler.schedule_job(job_id, required_devices, estimated_power_per_device)
        if not result["success"]:
            return result
        try:
            placement = self.thermal_scheduler.jobs.order(job_id)
        except ValueError as error:
            return {**result, "success": False, "devices": [], "error": str(error)}
        return {**result, "devices": list(placement.device_ids), "placement": placement.reason}

    def get_cluster_statistics(self) -> dict[str, Any]:
        """Counts and sums over all nodes, and the current temperatures and health of this one."""
        topology = self.topology_manager.cluster_topology
        return {
            "total_nodes": len(topology.nodes),
            "total_devices": topology.total_devices,
            "total_memory_gb": topology.total_memory_gb,
            "vendor_distribution": {v.value: n for v, n in topology.vendor_distribution.items()},
            "capability_distribution": {
                None if c is None else c.value: n for c, n in topology.capability_distribution.items()
            },
            "memory_distribution": topology.memory_distribution,
            "thermal": self.thermal_scheduler.get_thermal_report(),
            "health": self.health_monitor.get_device_health_status(),
        }

    def create_optimal_device_mesh(
        self,
        world_size: int,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        context_parallel_size: int = 1,
        data_parallel_size: int | None = None,
    ) -> DeviceMesh:
        """See :meth:`DeviceMeshOptimizer.create_optimal_mesh`."""
        sizes = tensor_parallel_size, pipeline_parallel_size, context_parallel_size, data_parallel_size
        return self.mesh_optimizer.create_optimal_mesh(world_size, *sizes)

    def get_health_report(self, hours: float = 1) -> dict[str, Any]:
        """``health`` of all devices and the host now, ``performance`` of the devices over the last hours."""
        return {
            "health": self.health_monitor.get_device_health_status(),
            "performance": self.health_monitor.get_performance_report(hours=hours),
        }

    def shutdown(self) -> None:
        """Stop the threads that were started for this adapter. May be called again."""
        self.health_monitor.stop_monitoring()
        if self._own_manager:
            self.topology_manager.shutdown()
