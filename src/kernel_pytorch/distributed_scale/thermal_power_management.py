"""Scheduling jobs on cool devices, and saving energy by power limits, within a power budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..machine.facts import ThermalState
from ..placement.heat import Decision
from ..placement.jobs import JobDevices
from ..power.efficiency import PowerMeasurement
from ..power.planner import PowerPlanner
from .hardware_discovery import HardwareTopologyManager

__all__ = ["PowerEfficiencyOptimizer", "ThermalAwareScheduler", "create_thermal_scheduler"]


class ThermalAwareScheduler:
    """:class:`.JobDevices` of a manager's node. ``thermal_threshold`` is in degrees Celsius."""

    def __init__(
        self,
        topology_manager: HardwareTopologyManager,
        thermal_threshold: float = 85.0,
        power_budget_w: float | None = None,
    ) -> None:
        self.jobs = JobDevices(topology_manager.view, thermal_threshold, power_budget_w)

    @property
    def thermal_threshold(self) -> float:
        return self.jobs.threshold_c

    @property
    def power_budget_w(self) -> float | None:
        return self.jobs.power_budget_w

    def schedule_job(
        self, job_id: str, required_devices: int, estimated_power_per_device: float = 300.0
    ) -> dict[str, Any]:
        """:meth:`.JobDevices.place`; the fields of a :class:`.Decision`, powers in watts.

        Returns:
            ``success``, ``devices``, ``estimated_power``, ``committed_power_w``, ``reasons`` by device id; if
            refused, ``error``.
        """
        return as_dict(self.jobs.place(job_id, required_devices, estimated_power_per_device))

    def release_job(self, job_id: str) -> bool:
        """Free a job's devices; False if there is no such job."""
        return self.jobs.release(job_id)

    def monitor_thermal_state(self) -> dict[str, Any]:
        """Temperatures of a :class:`.Heat`, and the ids of throttled, hot and unknown devices."""
        heat = self.jobs.heat()
        return {
            "timestamp": heat.time_s,
            "temperatures_c": heat.temperatures_c,
            "throttled_devices": heat.throttled,
            "hot_devices": heat.hot,
            "unknown_devices": heat.unknown,
        }

    def get_thermal_report(self) -> dict[str, Any]:
        """The counts and sums of a :class:`.Heat`; ``power_consumption`` in watts."""
        heat = self.jobs.heat()
        return {
            "timestamp": heat.time_s,
            "active_jobs": len(heat.jobs),
            "jobs": heat.jobs,
            "throttled_devices": len(heat.throttled),
            "throttled_device_ids": heat.throttled,
            "total_devices": len(heat.temperatures_c),
            "thermal_distribution": {
                **{state.value: heat.states[state] for state in ThermalState},
                "unknown": heat.states[None],
            },
            "power_consumption": heat.draw_w,
            "power_unknown_devices": heat.draws_unknown,
            "power_budget_w": self.jobs.power_budget_w,
            "committed_power_w": heat.committed_w,
        }


def as_dict(decision: Decision) -> dict[str, Any]:
    """See :meth:`ThermalAwareScheduler.schedule_job`."""
    return {
        "success": decision.refusal is None,
        "devices": list(decision.devices),
        "estimated_power": decision.estimated_w,
        "committed_power_w": decision.committed_w,
        "reasons": decision.reasons,
    } | ({} if decision.refusal is None else {"error": decision.refusal})


def create_thermal_scheduler(
    topology_manager: HardwareTopologyManager,
    thermal_threshold: float = 85.0,
    power_budget_w: float | None = None,
) -> ThermalAwareScheduler:
    """A scheduler for the devices of a manager."""
    return ThermalAwareScheduler(topology_manager, thermal_threshold, power_budget_w)


class PowerEfficiencyOptimizer:
    """:class:`.PowerPlanner` of a manager's node, whose arguments it takes."""

    def __init__(
        self,
        topology_manager: HardwareTopologyManager,
        power_budget_w: float | None = None,
        carbon_intensity_g_kwh: float | None = None,
    ) -> None:
        self.planner = PowerPlanner(topology_manager.view, power_budget_w, carbon_intensity_g_kwh)

    @property
    def power_budget_w(self) -> float | None:
        return self.planner.power_budget_w

    @property
    def carbon_intensity_g_kwh(self) -> float | None:
        return self.planner.carbon_intensity_g_kwh

    def record_measurement(
        self,
        workload: str,
        power_limit_w: float,
        throughput: float,
        power_w: float | None = None,
        *,
        devices: Sequence[int] = (),
    ) -> None:
        """See :meth:`.PowerPlanner.record`."""
        self.planner.record(workload, power_limit_w, throughput, power_w, devices)

    def measure(
        self, workload: str, run: Callable[[], float], limits_w: Sequence[float], devices: Sequence[int]
    ) -> list[PowerMeasurement]:
        """See :meth:`.PowerPlanner.measure`."""
        return self.planner.measure(workload, run, limits_w, devices)

    def optimize_power_distribution(
        self, workload_priorities: Mapping[str, float], efficiency_target: float = 0.8, apply: bool = False
    ) -> dict[str, Any]:
        """See :meth:`.PowerPlanner.plan`; the fields of a :class:`.PowerPlan`."""
        return vars(self.planner.plan(workload_priorities, efficiency_target, apply))

    def restore_power_limits(self) -> bool:
        """See :meth:`.PowerPlanner.restore`."""
        return self.planner.restore()
