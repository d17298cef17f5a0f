"""The jobs of this process and their devices of this node, chosen by heat within a power budget."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, replace

from ..machine.facts import HardwareVendor, ThermalState
from ..power.condition import DeviceCondition, committed_w, condition_of, with_past
from ..watch.cluster_view import ClusterView
from . import Placement, place, rank_devices
from .heat import THERMAL_THROTTLING, Decision, DeviceRequest, PlacedJob, choose_devices
from .request import PlacementRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Temperatures, power and jobs of a node's devices at one moment. Lists have device ids."""

    time_s: float
    """Seconds since 1970."""
    temperatures_c: dict[int, float | None]
    throttled: list[int]
    """Slowed down by heat."""
    hot: list[int]
    """Reached the threshold, and not 5 C below it since."""
    unknown: list[int]
    """Without a temperature."""
    states: Counter[ThermalState | None]
    """Number of devices by state; None: unknown."""
    draw_w: float | None
    """Sum over the devices of known draw; None if there are none."""
    draws_unknown: int
    """Number of devices that are not in that sum."""
    committed_w: float | None
    """Power committed of a budget; None if a device's draw has no known bound."""
    jobs: dict[str, list[int]]


class JobDevices:
    """Assigns devices of this node to jobs, coolest first: :func:`.heat.choose_devices`.

    A device has at most one job. Only jobs placed through this object are known. Any thread may call it.

    Args:
        view: has the devices, their telemetry and their health.
        threshold_c: degrees Celsius at or above which a device gets no job.
        power_budget_w: bound on what all devices may draw together; None: no bound.
    """

    def __init__(
        self, view: ClusterView, threshold_c: float = 85.0, power_budget_w: float | None = None
    ) -> None:
        DeviceRequest(num_devices=1, power_w=1, threshold_c=threshold_c, power_budget_w=power_budget_w)
        self.threshold_c, self.power_budget_w = threshold_c, power_budget_w
        self._view = view
        self._jobs: dict[str, PlacedJob] = {}
        """Devices by their ids in this node."""
        self._lock = threading.Lock()

    def place(self, job_id: str, num_devices: int, power_w: float) -> Decision:
        """Choose devices for a job from current readings, or refuse it.

        Args:
            power_w: estimate for each device; a lower power limit is used instead of it.
        """
        request = DeviceRequest(
            num_devices=num_devices,
            power_w=power_w,
            threshold_c=self.threshold_c,
            power_budget_w=self.power_budget_w,
        )
        first = self._view.first_id  # once: a discovery may change it meanwhile
        _, devices = self._conditions(first)  # not under the lock: listeners of a reading may call
        with self._lock:
            jobs = self._known_jobs(first)
            if job_id in jobs:
                held = list(jobs[job_id].devices)
                return Decision(
                    devices=(),
                    reasons={},
                    refusal=f"job {job_id!r} has devices {held} already: release it first",
                    committed_w=_committed_w(devices, jobs),
                )
            decision = choose_devices(devices, jobs, request)
            if decision.refusal is None:
                own = tuple(number - first for number in decision.devices)
                self._jobs[job_id] = PlacedJob(devices=own, power_w=power_w)
        return decision

    def place_in_order(
        self, job_id: str, num_devices: int, power_w: float
    ) -> tuple[Decision, Placement | None]:
        """As :meth:`place`, the devices in the order of :func:`.placement.place`, by the links between them.

        Refused too if they cannot work together: GPUs of two vendors, for example.
        """
        decision = self.place(job_id, num_devices, power_w)
        if decision.refusal is not None:
            return decision, None
        request = PlacementRequest(num_devices=num_devices, devices=decision.devices)
        try:
            placement = place(self._view.topology, request, self._view.states())
        except BaseException as error:
            self.release(job_id)
            if not isinstance(error, ValueError):
                raise
            committed_w = self.heat().committed_w
            return replace(
                decision, devices=(), refusal=str(error), estimated_w=None, committed_w=committed_w
            ), None
        return replace(decision, devices=placement.device_ids), placement

    def release(self, job_id: str) -> bool:
        """Free a job's devices; False if there is no such job."""
        with self._lock:
            return self._jobs.pop(job_id, None) is not None

    def heat(self) -> Heat:
        """Temperatures, draw and jobs now."""
        first = self._view.first_id
        time_s, devices = self._conditions(first)
        with self._lock:
            jobs = self._known_jobs(first)
        draws = [device.power_w for device in devices if device.power_w is not None]
        return Heat(
            time_s=time_s,
            temperatures_c={device.device_id: device.temperature_c for device in devices},
            throttled=[
                device.device_id
                for device in devices
                if THERMAL_THROTTLING.intersection(device.throttle_reasons or ())
            ],
            hot=[
                device.device_id
                for device in devices
                if device.cooling_down
                or (device.temperature_c is not None and device.temperature_c >= self.threshold_c)
            ],
            unknown=[device.device_id for device in devices if device.temperature_c is None],
            states=Counter(ThermalState.of(device.temperature_c) for device in devices),
            draw_w=sum(draws) if draws else None,
            draws_unknown=len(devices) - len(draws),
            committed_w=_committed_w(devices, jobs),
            jobs={name: list(job.devices) for name, job in jobs.items()},
        )

    def _known_jobs(self, first: int) -> dict[str, PlacedJob]:
        """The jobs, with the cluster ids of their devices."""
        return {
            name: replace(job, devices=tuple(first + number for number in job.devices))
            for name, job in self._jobs.items()
        }

    def _conditions(self, first: int) -> tuple[float, list[DeviceCondition]]:
        """Time of the reading, and the conditions of this node's devices by their cluster ids."""
        watch = self._view.watch
        snapshot = watch.now()
        states = {number: health.state for number, health in watch.device_health().items()}
        found = with_past(
            [condition_of(device, snapshot) for device in watch.devices],
            watch.telemetry.history,
            self.threshold_c,
            states,
        )
        return snapshot.time_s, [replace(each, device_id=first + each.device_id) for each in found]


def _committed_w(devices: list[DeviceCondition], jobs: dict[str, PlacedJob]) -> float | None:
    estimates = {device_id: job.power_w for job in jobs.values() for device_id in job.devices}
    return committed_w(devices, estimates)


def devices_for(
    view: ClusterView, memory_gb: float, tflops: float, vendor: HardwareVendor | None
) -> list[int]:
    """Ids of this node's devices that could each do a job now, best first: :func:`.links.rank_devices`.

    Those that could not are logged, with the reason.

    Raises:
        ValueError: no device can; the message tells why.
    """
    states = view.states()  # takes a reading if no thread does
    request = PlacementRequest(
        num_devices=1, memory_gb=memory_gb, tflops=tflops, prefer_vendor=vendor, devices=view.own_ids
    )
    ranking = rank_devices(view.topology, request, states, free_bytes=view.free_bytes())
    for device_id, why in ranking.left_out.items():
        logger.info("left out: device %d %s", device_id, why)
    return list(ranking.device_ids)
