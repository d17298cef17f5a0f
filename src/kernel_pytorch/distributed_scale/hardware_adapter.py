"""All of a job's hardware in one place: the devices, their heat, power and health, and meshes over them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..machine.current_device import current_device
from ..machine.facts import ClusterTopology, DeviceInfo, HardwareVendor
from ..placement import PlacementRequest, place
from .fault_tolerance import HardwareHealthMonitor
from .hardware_discovery import HardwareTopologyManager
from .mesh_optimizer import DeviceMeshOptimizer, create_device_mesh_optimizer
from .thermal_power_management import PowerEfficiencyOptimizer, ThermalAwareScheduler

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["DeviceMeshOptimizer", "HardwareAdapter", "create_device_mesh_optimizer"]

logger = logging.getLogger(__name__)


class HardwareAdapter:
    """The devices with what watches, schedules and arranges them.

    Args:
        enable_monitoring: whether a thread takes a reading each second; without it each question takes one.
        thermal_threshold: degrees Celsius from which on a device gets no job.
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
            self.thermal_scheduler = ThermalAwareScheduler(
                self.topology_manager, thermal_threshold, power_budget_w
            )
            self.power_optimizer = PowerEfficiencyOptimizer(self.topology_manager, power_budget_w)
            self.mesh_optimizer = DeviceMeshOptimizer(self.topology_manager)
            self.health_monitor = HardwareHealthMonitor(self.topology_manager, enable_monitoring)
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
        """Ids of the devices that fit, best first, the first of them being torch's current device meanwhile.

        A GPU that torch does not see (CUDA_VISIBLE_DEVICES) is left out. Without GPUs they are CPU packages,
        and torch's current device stays what it is.

        Raises:
            ValueError: no device fits; the message tells why.
        """
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
        """Ids of this node's devices that could each do a job, best first as :func:`.placement.place` has it.

        Args:
            memory_requirement_gb: memory that must be there, and free where its use is known.
            compute_requirement_tflops: peak float32 rate, in 1e12 FLOP/s.
            prefer_vendor: whose GPUs come first.

        Raises:
            ValueError: no device fits; the message tells why.
        """
        health = self.topology_manager.health()  # takes a reading if nothing else does
        topology = self._topology_with_free_memory()
        left = set(self.topology_manager.telemetry.history.device_ids)
        ranked: list[int] = []
        while left:
            request = PlacementRequest(
                num_devices=1,
                memory_gb=memory_requirement_gb,
                tflops=compute_requirement_tflops,
                prefer_vendor=prefer_vendor,
                devices=left,
            )
            placement = place(topology, request, health)
            for device_id, why in placement.left_out.items():
                logger.info("left out: device %d %s", device_id, why)
            ranked += placement.device_ids
            left -= {*placement.device_ids, *placement.left_out}
        return ranked

    def _topology_with_free_memory(self) -> ClusterTopology:
        """The topology with the memory that is free now for the memory of each device, where it is known."""
        topology, latest = self.topology_manager.cluster_topology, self.topology_manager.telemetry.latest

        def with_free(device: DeviceInfo) -> DeviceInfo:
            reading = latest.devices.get(device.device_id, device.reading) if latest else device.reading
            if device.memory_bytes is None or reading.memory_used_bytes is None:
                return device
            return replace(device, memory_bytes=device.memory_bytes - reading.memory_used_bytes)

        nodes = {
            number: replace(node, devices=tuple(with_free(device) for device in node.devices))
            for number, node in topology.nodes.items()
        }
        return replace(topology, nodes=nodes)

    def optimize_for_workload(
        self, job_id: str, required_devices: int, estimated_power_per_device: float = 300.0
    ) -> dict[str, Any]:
        """Give a job cool devices of its own, ordered by the links between them.

        ``thermal_scheduler.release_job`` frees them.

        Returns:
            As of :meth:`.ThermalAwareScheduler.schedule_job`; where it succeeded, ``devices`` are in the
            order of :func:`.placement.place`, and ``placement`` tells of their links.
        """
        result = self.thermal_scheduler.schedule_job(job_id, required_devices, estimated_power_per_device)
        if not result["success"]:
            return result
        request = PlacementRequest(num_devices=required_devices, devices=result["devices"])
        try:
            placement = place(self.topology_manager.cluster_topology, request, self.topology_manager.health())
        except ValueError as error:  # GPUs of two vendors, for example
            self.thermal_scheduler.release_job(job_id)
            return {**result, "success": False, "devices": [], "error": str(error)}
        return {**result, "devices": list(placement.device_ids), "placement": placement.reason}

    def get_cluster_statistics(self) -> dict[str, Any]:
        """Counts and sums over all nodes, with the heat and the health of this one now.

        Returns:
            ``total_nodes``, ``total_devices``, ``total_memory_gb`` (None if one's is unknown);
            ``vendor_distribution``, ``capability_distribution``, ``memory_distribution``: devices by vendor,
            architecture and GB; ``thermal``: :meth:`.ThermalAwareScheduler.get_thermal_report`; ``health``:
            :meth:`.HardwareHealthMonitor.get_device_health_status`.
        """
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
        return self.mesh_optimizer.create_optimal_mesh(
            world_size,
            tensor_parallel_size,
            pipeline_parallel_size,
            context_parallel_size,
            data_parallel_size,
        )

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
