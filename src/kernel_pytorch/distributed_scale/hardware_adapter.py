"""All of a job's hardware: devices, their temperature, power and health, and meshes over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..machine.current_device import current_device
from ..machine.facts import HardwareVendor
from ..placement import PlacementRequest
from ..placement.job_mesh import create_job_mesh, job_launch_hints
from ..placement.jobs import devices_for
from ..placement.launch_hints import LaunchHints
from ..watch.reports import counts_of
from .fault_tolerance import HardwareHealthMonitor
from .hardware_discovery import HardwareTopologyManager
from .thermal_power_management import PowerEfficiencyOptimizer, ThermalAwareScheduler, as_dict

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch.distributed.device_mesh import DeviceMesh

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
        traffic: npt.ArrayLike | None = None,
    ) -> DeviceMesh:
        """See :func:`.create_job_mesh`. ``data_parallel_size`` None: the world size divided by the others."""
        sizes = tensor_parallel_size, pipeline_parallel_size, context_parallel_size, data_parallel_size
        return create_job_mesh(self.view, _request(world_size, *sizes), traffic)

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
        """Ids of this node's devices that could each run a job, best first: :func:`.devices_for`."""
        view = self.topology_manager.view
        return devices_for(view, memory_requirement_gb, compute_requirement_tflops, prefer_vendor)

    def optimize_for_workload(
        self, job_id: str, required_devices: int, estimated_power_per_device: float = 300.0
    ) -> dict[str, Any]:
        """:meth:`.JobDevices.place_in_order`, as :meth:`.ThermalAwareScheduler.schedule_job` returns it.

        ``placement`` describes the links.
        """
        decision, placement = self.thermal_scheduler.jobs.place_in_order(
            job_id, required_devices, estimated_power_per_device
        )
        return as_dict(decision) | ({} if placement is None else {"placement": placement.reason})

    def get_cluster_statistics(self) -> dict[str, Any]:
        """Counts and sums over all nodes, and the current temperatures and health of this one."""
        return {
            **counts_of(self.topology_manager.cluster_topology),
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
        traffic: npt.ArrayLike | None = None,
    ) -> DeviceMesh:
        """See :meth:`DeviceMeshOptimizer.create_optimal_mesh`."""
        sizes = tensor_parallel_size, pipeline_parallel_size, context_parallel_size, data_parallel_size
        return self.mesh_optimizer.create_optimal_mesh(world_size, *sizes, traffic)

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
