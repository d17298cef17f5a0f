"""Power limits for workloads, from what was measured of them; set where it is asked and allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..machine.facts import DeviceInfo
from ..power.condition import DeviceCondition, committed_w, condition_of, read_now
from ..power.efficiency import LimitChoice, PowerMeasurement, Workload, carbon_g_h, share_budget
from ..power.energy import EnergyMeter
from ..power.limits import PowerLimitError, PowerLimits
from .device_numbers import DeviceNumbers

if TYPE_CHECKING:
    from .hardware_discovery import HardwareTopologyManager


class _NoPlanError(Exception):
    """Limits were not found, or not set; the text tells why."""


@dataclass
class _Measured:
    devices: tuple[int, ...]
    """Empty: not told."""
    by_limit: dict[float, PowerMeasurement] = field(default_factory=dict)


class PowerEfficiencyOptimizer:
    """Finds the power limits that save the most energy while each workload keeps its share of throughput.

    Args:
        topology_manager: has the devices and their telemetry.
        power_budget_w: bound on what all devices may draw together; None: no bound.
        carbon_intensity_g_kwh: grams of CO2 emitted for a kWh where it is used. In 2023 it was 30 in Norway
            and 713 in India (source: Ember), so no default would be right; None: emissions are unknown.
    """

    def __init__(
        self,
        topology_manager: HardwareTopologyManager,
        power_budget_w: float | None = None,
        carbon_intensity_g_kwh: float | None = None,
    ) -> None:
        if power_budget_w is not None and not power_budget_w > 0:
            raise ValueError(f"power_budget_w must be positive, got {power_budget_w}")
        if carbon_intensity_g_kwh is not None and not carbon_intensity_g_kwh >= 0:
            raise ValueError(f"carbon_intensity_g_kwh must not be negative, got {carbon_intensity_g_kwh}")
        self.power_budget_w, self.carbon_intensity_g_kwh = power_budget_w, carbon_intensity_g_kwh
        self._manager = topology_manager
        self._workloads: dict[str, _Measured] = {}
        self._limits: PowerLimits | None = None
        self._numbers = DeviceNumbers(topology_manager.cluster_topology)
        self._lock = threading.RLock()

    def record_measurement(
        self,
        workload: str,
        power_limit_w: float,
        throughput: float,
        power_w: float | None = None,
        *,
        devices: Sequence[int] = (),
    ) -> None:
        """Note what a workload does at a limit. A later measurement at the same limit takes its place.

        Args:
            power_limit_w: of each of its devices.
            throughput: units of work a second, in the workload's own unit.
            power_w: mean draw of its devices together; None: not measured, the limits stand for it.
            devices: ids of the devices that it runs on, which it then has to itself; to be told once. A
                workload without them counts as one device, and no limit can be set for it.

        Raises:
            ValueError: a value that is not positive, an unknown or repeated device, devices unlike before.
        """
        measurement = PowerMeasurement(power_limit_w=power_limit_w, throughput=throughput, power_w=power_w)
        self._infos(devices)
        with self._lock:
            self._follow()
            known = self._workloads.setdefault(workload, _Measured(tuple(devices)))
            if devices and known.devices and set(devices) != set(known.devices):
                raise ValueError(
                    f"devices of workload {workload!r} are {list(known.devices)}, got {list(devices)}"
                )
            known.devices = known.devices or tuple(devices)
            known.by_limit[power_limit_w] = measurement

    def measure(
        self, workload: str, run: Callable[[], float], limits_w: Sequence[float], devices: Sequence[int]
    ) -> list[PowerMeasurement]:
        """Run a workload once at each limit and record what it does; the limits before are put back.

        Args:
            run: does some seconds of work, warmed up, waits for the devices, and returns the units of work.

        Raises:
            PowerLimitError: a limit cannot be set here.
            ValueError: ``run`` did no work, or a device is unknown.
        """
        infos = self._infos(devices)
        meter = EnergyMeter(self._manager.telemetry.sample, infos)
        found = []
        for limit_w in limits_w:
            with PowerLimits(infos, dict.fromkeys(devices, limit_w)):
                with meter:
                    begun = time.perf_counter()
                    units = run()
                    seconds = time.perf_counter() - begun
                self.record_measurement(workload, limit_w, units / seconds, meter.power_w, devices=devices)
            found.append(self._workloads[workload].by_limit[limit_w])
        return found

    def optimize_power_distribution(
        self, workload_priorities: Mapping[str, float], efficiency_target: float = 0.8, apply: bool = False
    ) -> dict[str, Any]:
        """Choose a limit for each workload: see :func:`~..machine.power.efficiency.share_budget`.

        The budget is what remains of ``power_budget_w`` beside the devices that have no workload, where the
        devices of all workloads were told; else it is shared by the workloads alone.

        Args:
            workload_priorities: by workload, how much its energy weighs against that of others.
            efficiency_target: share of its best measured throughput that each workload keeps, above 0 to 1:
                its work takes at most ``1 / efficiency_target`` times as long.
            apply: whether to set the limits, once those from before an earlier call are back.
                :meth:`restore_power_limits` puts them back again.

        Returns:
            ``success``: limits were found and, with ``apply``, set and read back; ``applied``; ``reason``;
            ``target_efficiency``; ``workload_limits``: the choice for each workload; ``device_adjustments``:
            limit in watts by device id; ``current_power_w``: draw of all devices now, None if one is unknown;
            ``estimated_savings_w``: measured draw at each workload's fastest limit less that at the chosen
            one, None if one was not measured; ``carbon_reduction_g_h``: what that saves, None if unknown.

        Raises:
            ValueError: no workload, a priority that is not positive, a target outside of (0, 1].
        """
        if not 0 < efficiency_target <= 1:
            raise ValueError(f"efficiency_target must be above 0 and at most 1, got {efficiency_target}")
        if not workload_priorities:
            raise ValueError("workload_priorities must name a workload")
        devices = self._conditions()  # not under the lock: listeners of the telemetry may call this object
        draws = [device.power_w for device in devices]
        result: dict[str, Any] = {
            "success": False,
            "applied": False,
            "current_power_w": None if None in draws else sum(draw for draw in draws if draw is not None),
            "target_efficiency": efficiency_target,
            "workload_limits": {},
            "device_adjustments": {},
            "estimated_savings_w": None,
            "carbon_reduction_g_h": None,
        }
        with self._lock:
            self._follow()
            try:
                workloads = self._to_workloads(workload_priorities)
                budget_w, basis = self._budget(workload_priorities, devices)
                share = share_budget(workloads, 1 / efficiency_target, budget_w)
                result["reason"] = share.reason + basis
                if not share.choices:
                    return result
                result["workload_limits"] = share.choices
                result["device_adjustments"] = {
                    device_id: choice.power_limit_w
                    for name, choice in share.choices.items()
                    for device_id in self._workloads[name].devices
                }
                if apply:
                    self._apply(workload_priorities, result["device_adjustments"])
                    result["applied"] = True
            except (_NoPlanError, PowerLimitError) as error:
                return {**result, "reason": str(error)}
        savings_w = _savings_w(workloads, share.choices)
        intensity = self.carbon_intensity_g_kwh
        result["success"], result["estimated_savings_w"] = True, savings_w
        if savings_w is not None and intensity is not None:
            result["carbon_reduction_g_h"] = carbon_g_h(savings_w, intensity)
        return result

    def restore_power_limits(self) -> bool:
        """Put back the limits from before :meth:`optimize_power_distribution` set any; False if it did not.

        Raises:
            PowerLimitError: some did not take; call again to try again.
        """
        with self._lock:
            if self._limits is None:
                return False
            self._limits.restore()
            self._limits = None
            return True

    def _apply(self, names: Iterable[str], limits_w: dict[int, float]) -> None:
        homeless = [name for name in names if not self._workloads[name].devices]
        if homeless:
            raise _NoPlanError(
                f"devices of {homeless} are not known: tell them to record_measurement(devices=...)"
            )
        self.restore_power_limits()
        limits = PowerLimits(self._manager.cluster_topology.devices, limits_w)
        try:
            limits.set()
        except ValueError as error:
            raise _NoPlanError(str(error)) from error
        finally:
            self._limits = limits if limits.former_w else None

    def _to_workloads(self, priorities: Mapping[str, float]) -> dict[str, Workload]:
        unmeasured = [name for name in priorities if name not in self._workloads]
        if unmeasured:
            raise _NoPlanError(
                f"no measurements of {unmeasured}: record_measurement() or measure() come first"
            )
        owners: dict[int, str] = {}
        for name in priorities:
            for device_id in self._workloads[name].devices:
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
        """What the workloads may use of the budget, and how that was found."""
        if self.power_budget_w is None:
            return None, ""
        places = [self._workloads[name].devices for name in names]
        if not all(places):
            return (
                self.power_budget_w,
                "; draw of other devices not counted, since not all workloads tell theirs",
            )
        taken = {device_id for place in places for device_id in place}
        others = [device for device in devices if device.device_id not in taken]
        others_w = committed_w(others, {})
        if others_w is None:
            unknown = [device.device_id for device in others if device.idle_w is None]
            raise _NoPlanError(
                f"draw and limit of devices {unknown} without a workload are unknown: nothing bounds what "
                f"they use of the budget of {self.power_budget_w:g} W"
            )
        left_w = self.power_budget_w - others_w
        return left_w, f"; {others_w:g} W of {self.power_budget_w:g} W go to devices without a workload"

    def _infos(self, device_ids: Sequence[int]) -> list[DeviceInfo]:
        known = {device.device_id: device for device in self._manager.cluster_topology.devices}
        if len(set(device_ids)) < len(device_ids):
            raise ValueError(f"devices must be distinct, got {list(device_ids)}")
        for device_id in device_ids:
            if device_id not in known:
                raise ValueError(f"devices must be among {sorted(known)}, got {device_id}")
        return [known[device_id] for device_id in device_ids]

    def _follow(self) -> None:
        """Know the devices of workloads by the ids that they have now."""
        now = self._numbers.moves(self._manager.cluster_topology)
        for known in self._workloads.values():
            known.devices = tuple(now[id] for id in known.devices if id in now)

    def _conditions(self) -> list[DeviceCondition]:
        snapshot = read_now(self._manager.telemetry)
        return [condition_of(device, snapshot) for device in self._manager.cluster_topology.devices]


def _savings_w(workloads: Mapping[str, Workload], choices: Mapping[str, LimitChoice]) -> float | None:
    """Draw at the fastest limits less that at the chosen ones; None if one was not measured."""
    saved = 0.0
    for name, workload in workloads.items():
        fastest = max(workload.measurements, key=lambda measurement: measurement.throughput)
        if fastest.power_w is None or not choices[name].measured:
            return None
        saved += fastest.power_w - choices[name].power_w
    return saved
