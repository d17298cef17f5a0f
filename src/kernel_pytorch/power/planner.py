"""Power limits for the workloads of this node, from measurements; set on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import KernelPytorchError
from ..machine.facts import DeviceInfo
from ..watch.cluster_view import ClusterView
from .condition import DeviceCondition, committed_w, condition_of
from .efficiency import LimitChoice, PowerMeasurement, Workload, carbon_g_h, share_budget
from .energy import EnergyMeter
from .limits import PowerLimitError, PowerLimits


class _NoPlanError(KernelPytorchError):
    """No power limits were found, or they could not be set."""


@dataclass
class _Measured:
    devices: tuple[int, ...]
    """Ids in this node; empty: not given."""
    by_limit: dict[float, PowerMeasurement] = field(default_factory=dict)


@dataclass(kw_only=True)
class PowerPlan:
    """Power limits for workloads, or why there are none."""

    target_efficiency: float
    """Share of its best measured throughput that each workload keeps."""
    success: bool = False
    """Limits were found and, where asked for, set and read back."""
    applied: bool = False
    reason: str = ""
    current_power_w: float | None = None
    """Draw of all devices now; None if one is unknown."""
    workload_limits: dict[str, LimitChoice] = field(default_factory=dict)
    """By workload."""
    device_adjustments: dict[int, float] = field(default_factory=dict)
    """Power limit by device id."""
    estimated_savings_w: float | None = None
    """Measured draw at each workload's fastest limit less that at the chosen one; None if one is unknown."""
    carbon_reduction_g_h: float | None = None
    """Grams of CO2 an hour that the savings avoid; None if unknown."""


class PowerPlanner:
    """Finds the power limits that save the most energy while each workload keeps its share of throughput.

    Args:
        view: has the devices and their telemetry.
        power_budget_w: bound on what all devices of this node may draw together; None: no bound.
        carbon_intensity_g_kwh: grams of CO2 emitted for a kWh where it is used. In 2023 it was 30 in Norway
            and 713 in India (source: Ember), so no default would be right; None: emissions are unknown.
    """

    def __init__(
        self,
        view: ClusterView,
        power_budget_w: float | None = None,
        carbon_intensity_g_kwh: float | None = None,
    ) -> None:
        if power_budget_w is not None and not power_budget_w > 0:
            raise ValueError(f"power_budget_w must be positive, got {power_budget_w}")
        if carbon_intensity_g_kwh is not None and not carbon_intensity_g_kwh >= 0:
            raise ValueError(f"carbon_intensity_g_kwh must not be negative, got {carbon_intensity_g_kwh}")
        self.power_budget_w, self.carbon_intensity_g_kwh = power_budget_w, carbon_intensity_g_kwh
        self._view = view
        self._workloads: dict[str, _Measured] = {}
        self._limits: PowerLimits | None = None
        self._lock = threading.RLock()

    def record(
        self,
        workload: str,
        power_limit_w: float,
        throughput: float,
        power_w: float | None = None,
        devices: Sequence[int] = (),
    ) -> PowerMeasurement:
        """Record a measurement of a workload at a power limit. A later one at the same limit replaces it.

        Args:
            power_limit_w: of each of its devices.
            throughput: units of work a second, in the workload's own unit.
            power_w: mean draw of its devices together; None: not measured, their limits are used.
            devices: ids of the devices that it alone runs on; need be given only once. A workload without
                them is treated as one device, and no limit can be set for it.

        Raises:
            ValueError: a value that is not positive, an unknown or repeated device, devices unlike before.
        """
        measurement = PowerMeasurement(power_limit_w=power_limit_w, throughput=throughput, power_w=power_w)
        own = tuple(device.device_id for device in self._infos(devices))
        with self._lock:
            known = self._workloads.setdefault(workload, _Measured(own))
            if own and known.devices and set(own) != set(known.devices):
                raise ValueError(
                    f"devices of workload {workload!r} are {self._devices_of(workload)}, got {list(devices)}"
                )
            known.devices = known.devices or own
            known.by_limit[power_limit_w] = measurement
        return measurement

    def measure(
        self, workload: str, run: Callable[[], float], limits_w: Sequence[float], devices: Sequence[int]
    ) -> list[PowerMeasurement]:
        """Run a workload once at each power limit and record it; the former limits are restored.

        Args:
            run: does some seconds of work, warmed up, waits for the devices, and returns the units of work.

        Raises:
            PowerLimitError: a limit cannot be set here.
            ValueError: ``run`` did no work, or a device is unknown.
        """
        infos = self._infos(devices)
        meter = EnergyMeter(self._view.watch.telemetry.sample, infos)
        found = []
        for limit_w in limits_w:
            with PowerLimits(self._view.own_devices, dict.fromkeys(devices, limit_w)):
                with meter:
                    begun = time.perf_counter()
                    units = run()
                    seconds = time.perf_counter() - begun
                found.append(self.record(workload, limit_w, units / seconds, meter.power_w, devices))
        return found

    def plan(self, priorities: Mapping[str, float], target: float = 0.8, apply: bool = False) -> PowerPlan:
        """Choose a power limit for each workload: see :func:`.efficiency.share_budget`.

        If the devices of all workloads are known, the draw of the devices without a workload is deducted from
        ``power_budget_w``; else the workloads share all of it.

        Args:
            priorities: by workload, weight of its energy in the sum that is minimised.
            target: share of its best measured throughput that each workload keeps, above 0 to 1: its work
                takes at most ``1 / target`` times as long.
            apply: undo the limits of an earlier call and set the new ones. :meth:`restore` undoes them.

        Raises:
            ValueError: no workload, a priority that is not positive, a target outside of (0, 1].
        """
        if not 0 < target <= 1:
            raise ValueError(f"efficiency_target must be above 0 and at most 1, got {target}")
        if not priorities:
            raise ValueError("workload_priorities must name a workload")
        snapshot = self._view.watch.now()  # not under the lock: its listeners may call this object
        devices = [condition_of(device, snapshot) for device in self._view.watch.devices]
        draws = [device.power_w for device in devices]
        plan = PowerPlan(
            target_efficiency=target,
            current_power_w=None if None in draws else sum(draw for draw in draws if draw is not None),
        )
        with self._lock:
            try:
                workloads = self._to_workloads(priorities)
                budget_w, basis = self._budget(priorities, devices)
                share = share_budget(workloads, 1 / target, budget_w)
                plan.reason = share.reason + basis
                if not share.choices:
                    return plan
                plan.workload_limits = share.choices
                plan.device_adjustments = {
                    device_id: choice.power_limit_w
                    for name, choice in share.choices.items()
                    for device_id in self._devices_of(name)
                }
                if apply:
                    self._apply(plan)
            except (_NoPlanError, PowerLimitError) as error:
                plan.reason = str(error)
                return plan
        plan.success = True
        plan.estimated_savings_w = _savings_w(workloads, share.choices)
        if plan.estimated_savings_w is not None and self.carbon_intensity_g_kwh is not None:
            plan.carbon_reduction_g_h = carbon_g_h(plan.estimated_savings_w, self.carbon_intensity_g_kwh)
        return plan

    def restore(self) -> bool:
        """Restore the limits from before :meth:`plan` set any; False if it set none.

        Raises:
            PowerLimitError: some could not be restored; call again to retry.
        """
        with self._lock:
            if self._limits is None:
                return False
            self._limits.restore()
            self._limits = None
            return True

    def _apply(self, plan: PowerPlan) -> None:
        without_devices = [name for name in plan.workload_limits if not self._workloads[name].devices]
        if without_devices:
            raise _NoPlanError(
                f"devices of {without_devices} are not known: tell them to record_measurement(devices=...)"
            )
        self.restore()
        limits = PowerLimits(self._view.own_devices, plan.device_adjustments)
        try:
            limits.set()
        except ValueError as error:
            raise _NoPlanError(str(error)) from error
        finally:
            self._limits = limits if limits.former_w else None
        plan.applied = True

    def _to_workloads(self, priorities: Mapping[str, float]) -> dict[str, Workload]:
        unmeasured = [name for name in priorities if name not in self._workloads]
        if unmeasured:
            raise _NoPlanError(
                f"no measurements of {unmeasured}: record_measurement() or measure() come first"
            )
        owners: dict[int, str] = {}
        for name in priorities:
            for device_id in self._devices_of(name):
                other = owners.setdefault(device_id, name)
                if other != name:
                    raise _NoPlanError(
                        f"device {device_id} runs both {other!r} and {name!r}: a limit holds for both"
                    )
        return {
            name: Workload(
                measurements=tuple(self._workloads[name].by_limit.values()),
                num_devices=len(self._workloads[name].devices) or 1,
                priority=priority,
            )
            for name, priority in priorities.items()
        }

    def _budget(self, names: Iterable[str], devices: Iterable[DeviceCondition]) -> tuple[float | None, str]:
        """Watts that the workloads may use, and the basis of that number."""
        if self.power_budget_w is None:
            return None, ""
        held = [self._workloads[name].devices for name in names]
        if not all(held):
            return (
                self.power_budget_w,
                "; draw of other devices not counted, since not all workloads tell theirs",
            )
        taken = {device_id for devices_of_one in held for device_id in devices_of_one}
        others = [device for device in devices if device.device_id not in taken]
        others_w = committed_w(others, {})
        if others_w is None:
            first = self._view.first_id
            unknown = [first + device.device_id for device in others if device.idle_w is None]
            raise _NoPlanError(
                f"draw and limit of devices {unknown} without a workload are unknown: nothing bounds what "
                f"they use of the budget of {self.power_budget_w:g} W"
            )
        left_w = self.power_budget_w - others_w
        return left_w, f"; {others_w:g} W of {self.power_budget_w:g} W go to devices without a workload"

    def _devices_of(self, workload: str) -> list[int]:
        """Cluster ids of a workload's devices."""
        return [self._view.first_id + number for number in self._workloads[workload].devices]

    def _infos(self, device_ids: Sequence[int]) -> list[DeviceInfo]:
        """The devices with these cluster ids; the result has their ids in this node."""
        if len(set(device_ids)) < len(device_ids):
            raise ValueError(f"devices must be distinct, got {list(device_ids)}")
        known = {device.device_id: device for device in self._view.watch.devices}
        own = self._view.own_ids
        for device_id in device_ids:
            if device_id not in own:
                raise ValueError(f"devices must be among {own}, got {device_id}")
        return [known[device_id - self._view.first_id] for device_id in device_ids]


def _savings_w(workloads: Mapping[str, Workload], choices: Mapping[str, LimitChoice]) -> float | None:
    """Draw at the fastest limits less that at the chosen ones; None if one was not measured."""
    saved = 0.0
    for name, workload in workloads.items():
        fastest = max(workload.measurements, key=lambda measurement: measurement.throughput)
        if fastest.power_w is None or not choices[name].measured:
            return None
        saved += fastest.power_w - choices[name].power_w
    return saved
