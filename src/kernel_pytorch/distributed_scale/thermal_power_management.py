"""Jobs on the devices that stay cool, within a power budget."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..machine.facts import ClusterTopology, ThermalState
from ..placement.heat import (
    THERMAL_THROTTLING,
    DeviceRequest,
    PlacedJob,
    choose_devices,
)
from ..power.condition import DeviceCondition, committed_w, condition_of, read_now, with_past
from .device_numbers import DeviceNumbers
from .power_efficiency import PowerEfficiencyOptimizer

if TYPE_CHECKING:
    from .hardware_discovery import HardwareTopologyManager

__all__ = ["PowerEfficiencyOptimizer", "ThermalAwareScheduler", "create_thermal_scheduler"]


@dataclass(frozen=True)
class _Look:
    time_s: float
    topology: ClusterTopology
    devices: list[DeviceCondition]


class ThermalAwareScheduler:
    """Gives jobs devices of this node, each for one job, the coolest first: :func:`.thermal.choose_devices`.

    It knows the jobs that it placed itself, in this process; they keep their devices when a discovery numbers
    these anew. Any thread may call it.

    Args:
        topology_manager: has the devices, their telemetry and their health.
        thermal_threshold: degrees Celsius from which on a device gets no job.
        power_budget_w: bound on what all devices may draw together; None: no bound.
    """

    def __init__(
        self,
        topology_manager: HardwareTopologyManager,
        thermal_threshold: float = 85.0,
        power_budget_w: float | None = None,
    ) -> None:
        DeviceRequest(num_devices=1, power_w=1, threshold_c=thermal_threshold, power_budget_w=power_budget_w)
        self.thermal_threshold, self.power_budget_w = thermal_threshold, power_budget_w
        self._manager = topology_manager
        self._jobs: dict[str, PlacedJob] = {}
        self._numbers = DeviceNumbers(topology_manager.cluster_topology)
        self._lock = threading.Lock()

    def schedule_job(
        self, job_id: str, required_devices: int, estimated_power_per_device: float = 300.0
    ) -> dict[str, Any]:
        """Take a reading and place a job, or refuse it.

        Args:
            estimated_power_per_device: watts. Less counts on a device whose power limit is lower.

        Returns:
            ``success``; ``devices``, the best first, empty if refused; ``estimated_power``, watts on these
            devices, None if refused; ``committed_power_w``, what counts against the budget now, None where
            nothing bounds a device's draw; ``reasons``, a text for each device; ``error``, if refused.
        """
        request = DeviceRequest(
            num_devices=required_devices,
            power_w=estimated_power_per_device,
            threshold_c=self.thermal_threshold,
            power_budget_w=self.power_budget_w,
        )
        look = self._look()  # not under the lock: listeners of the telemetry may call the scheduler
        with self._lock:
            self._follow(look.topology)
            if job_id in self._jobs:
                held = list(self._jobs[job_id].devices)
                return {
                    "success": False,
                    "devices": [],
                    "estimated_power": None,
                    "committed_power_w": self._committed_w(look),
                    "reasons": {},
                    "error": f"job {job_id!r} has devices {held} already: release it first",
                }
            decision = choose_devices(look.devices, self._jobs, request)
            if decision.refusal is None:
                self._jobs[job_id] = PlacedJob(devices=decision.devices, power_w=request.power_w)
        result: dict[str, Any] = {
            "success": decision.refusal is None,
            "devices": list(decision.devices),
            "estimated_power": decision.estimated_w,
            "committed_power_w": decision.committed_w,
            "reasons": decision.reasons,
        }
        return result if decision.refusal is None else {**result, "error": decision.refusal}

    def release_job(self, job_id: str) -> bool:
        """Free a job's devices; False if there is no such job."""
        with self._lock:
            return self._jobs.pop(job_id, None) is not None

    def monitor_thermal_state(self) -> dict[str, Any]:
        """Take a reading.

        Returns:
            ``timestamp``, seconds since 1970; ``temperatures_c`` by device id, None where unknown; and ids:
            ``throttled_devices`` by heat; ``hot_devices`` that reached the threshold and are not yet 5 C
            below it again; ``unknown_devices`` without a temperature.
        """
        look = self._look()
        heat = {device.device_id: device.temperature_c for device in look.devices}
        return {
            "timestamp": look.time_s,
            "temperatures_c": heat,
            "throttled_devices": _throttled(look),
            "hot_devices": [
                device.device_id
                for device in look.devices
                if device.cooling_down
                or (device.temperature_c is not None and device.temperature_c >= self.thermal_threshold)
            ],
            "unknown_devices": [device_id for device_id, value in heat.items() if value is None],
        }

    def get_thermal_report(self) -> dict[str, Any]:
        """Take a reading and sum up.

        Returns:
            ``timestamp``, seconds since 1970; ``active_jobs`` and ``throttled_devices``, how many, with
            ``jobs``, device ids by job, and ``throttled_device_ids``; ``total_devices``;
            ``thermal_distribution``, devices by :class:`ThermalState` and ``unknown``;
            ``power_consumption``, watts of the devices whose draw could be read, None if there are none;
            ``power_unknown_devices``, how many are not in that sum; ``power_budget_w`` and
            ``committed_power_w``, what counts against it, None where nothing bounds a device's draw.
        """
        look = self._look()
        with self._lock:
            self._follow(look.topology)
            jobs = {name: list(job.devices) for name, job in self._jobs.items()}
            committed = self._committed_w(look)
        states = Counter(ThermalState.of(device.temperature_c) for device in look.devices)
        draws = [device.power_w for device in look.devices if device.power_w is not None]
        return {
            "timestamp": look.time_s,
            "active_jobs": len(jobs),
            "jobs": jobs,
            "throttled_devices": len(_throttled(look)),
            "throttled_device_ids": _throttled(look),
            "total_devices": len(look.devices),
            "thermal_distribution": {
                **{state.value: states[state] for state in ThermalState},
                "unknown": states[None],
            },
            "power_consumption": sum(draws) if draws else None,
            "power_unknown_devices": len(look.devices) - len(draws),
            "power_budget_w": self.power_budget_w,
            "committed_power_w": committed,
        }

    def _look(self) -> _Look:
        snapshot, topology = read_now(self._manager.telemetry), self._manager.cluster_topology
        history = self._manager.telemetry.history
        own = set(history.device_ids)  # those of other nodes are scheduled there
        devices = [condition_of(device, snapshot) for device in topology.devices if device.device_id in own]
        known = with_past(devices, history, self.thermal_threshold, self._manager.health())
        return _Look(snapshot.time_s, topology, known)

    def _follow(self, topology: ClusterTopology) -> None:
        """Know the devices of jobs by the ids that they have now."""
        now = self._numbers.moves(topology)
        for name, job in self._jobs.items():
            self._jobs[name] = replace(job, devices=tuple(now[id] for id in job.devices if id in now))

    def _committed_w(self, look: _Look) -> float | None:
        estimates = {device_id: job.power_w for job in self._jobs.values() for device_id in job.devices}
        return committed_w(look.devices, estimates)


def _throttled(look: _Look) -> list[int]:
    return [
        device.device_id
        for device in look.devices
        if THERMAL_THROTTLING.intersection(device.throttle_reasons or ())
    ]


def create_thermal_scheduler(
    topology_manager: HardwareTopologyManager,
    thermal_threshold: float = 85.0,
    power_budget_w: float | None = None,
) -> ThermalAwareScheduler:
    return ThermalAwareScheduler(topology_manager, thermal_threshold, power_budget_w)
