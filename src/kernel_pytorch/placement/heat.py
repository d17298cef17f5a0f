"""Choosing the coolest usable devices for a job, within a power budget. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..power.condition import HYSTERESIS_C, DeviceCondition, committed_w
from ..watch.health import HealthState
from ..watch.health.evidence import severity
from .request import positive_int
from .text import left_out_by_reason, too_few

HORIZON_MIN = 5.0
"""A device whose trend reaches the threshold within this many minutes gets no job."""
THERMAL_THROTTLING = frozenset({"hw_thermal", "sw_thermal", "hw_slowdown"})


@dataclass(frozen=True, kw_only=True)
class PlacedJob:
    """A job and its devices."""

    devices: tuple[int, ...]
    power_w: float
    """Estimate for each device."""


@dataclass(frozen=True, kw_only=True)
class DeviceRequest:
    """Devices for a job.

    Raises:
        TypeError: num_devices is not an integer.
        ValueError: a number or a power that is not positive, or a threshold that is not finite.
    """

    num_devices: int
    power_w: float
    """Estimate for each device."""
    threshold_c: float
    power_budget_w: float | None = None
    """For all devices together, including those without a job."""

    def __post_init__(self) -> None:
        positive_int("num_devices", self.num_devices)
        if not 0 < self.power_w < math.inf:
            raise ValueError(f"power_w must be positive, got {self.power_w}")
        if not math.isfinite(self.threshold_c):
            raise ValueError(f"threshold_c must be finite, got {self.threshold_c}")
        if self.power_budget_w is not None and not self.power_budget_w > 0:
            raise ValueError(f"power_budget_w must be positive, got {self.power_budget_w}")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The devices for a job, or why it is refused."""

    devices: tuple[int, ...]
    """Ids, best first; empty if the request is refused."""
    reasons: dict[int, str]
    """Why each device was chosen or not, by id."""
    refusal: str | None = None
    estimated_w: float | None = None
    """What the job may draw on its devices; None if refused."""
    committed_w: float | None = None
    """Power committed of the budget after this decision; None if a device's draw has no known bound."""


def choose_devices(
    devices: Sequence[DeviceCondition], jobs: Mapping[str, PlacedJob], request: DeviceRequest
) -> Decision:
    """Choose devices for a job.

    Excluded are devices that have a job, have failed, are throttled by heat, reached the threshold and have
    not been :data:`HYSTERESIS_C` below it since, or will reach it within :data:`HORIZON_MIN`. The others are
    ranked: known temperature before unknown; then healthy, unknown, degraded; then the cooler; then the lower
    id. Of the sets within the budget the first in lexicographic order of rank is taken.

    The budget is for the sum over all devices of what each may draw (:func:`.committed_w`). A device of
    unknown draw and power limit exceeds every budget unless the job gets it: then the estimate is used.
    """
    owners = {device_id: name for name, job in jobs.items() for device_id in job.devices}
    placed_w = {device_id: job.power_w for job in jobs.values() for device_id in job.devices}
    faults: dict[int, tuple[str, str]] = {}
    usable: list[DeviceCondition] = []
    for device in devices:
        fault = _fault(device, owners.get(device.device_id), request.threshold_c)
        if fault is None:
            usable.append(device)
        else:
            faults[device.device_id] = fault
    usable.sort(key=_rank)

    def total_w(chosen: Sequence[DeviceCondition]) -> float | None:
        new = {device.device_id: request.power_w for device in chosen}
        return committed_w(devices, {**placed_w, **new})

    if len(usable) < request.num_devices:
        chosen: Sequence[DeviceCondition] = ()
        kinds = {device.device_id: device.kind or "device" for device in devices}
        words = {device_id: word for device_id, (word, _) in faults.items()}
        limit = too_few(request.num_devices, len(usable), len(usable), len(devices))
        refusal = "; ".join([limit, *left_out_by_reason(kinds, words)])
    else:
        chosen, refusal = _within_budget(usable, request, total_w)
    reasons = {device_id: reason for device_id, (_, reason) in faults.items()}
    reasons |= _reasons(usable, chosen, request)
    if request.power_budget_w is not None:
        for device in devices:
            if device not in chosen and device.device_id not in owners:
                reasons[device.device_id] += _idle_note(device)
    return Decision(
        devices=tuple(device.device_id for device in chosen),
        reasons={device.device_id: reasons[device.device_id] for device in devices},
        refusal=refusal or None,
        estimated_w=math.fsum(device.capped_w(request.power_w) for device in chosen) if chosen else None,
        committed_w=total_w(chosen),
    )


def _fault(device: DeviceCondition, owner: str | None, threshold_c: float) -> tuple[str, str] | None:
    """Why a device may not be used, in a word or two and in full; None if it may."""
    heat, slope = device.temperature_c, device.slope_c_min
    throttling = sorted(THERMAL_THROTTLING.intersection(device.throttle_reasons or ()))
    if device.hidden:
        return "hidden", device.hidden
    if owner is not None:
        return "taken", f"taken by job {owner!r}"
    if device.health is HealthState.FAILED:
        return "failed", "failed"
    if heat is not None and heat >= threshold_c:
        return "too hot", f"{heat:g} C reaches the threshold of {threshold_c:g} C"
    if throttling:
        return "throttled", f"throttled by heat ({', '.join(throttling)})"
    if device.cooling_down:
        release = threshold_c - HYSTERESIS_C
        now = "temperature unknown" if heat is None else f"{heat:g} C"
        return "cooling down", f"{now}, was at {threshold_c:g} C or over and not below {release:g} C since"
    if heat is not None and slope is not None and slope > 0 and heat + slope * HORIZON_MIN >= threshold_c:
        minutes = (threshold_c - heat) / slope
        trend = f"{heat:g} C and {slope:.1f} C a minute warmer"
        return "heating up", f"{trend}: reaches {threshold_c:g} C in {minutes:.1f} minutes"
    return None


def _rank(device: DeviceCondition) -> tuple[bool, int, float, int]:
    heat = device.temperature_c
    return heat is None, severity(device.health), heat or 0.0, device.device_id


def _within_budget(
    usable: Sequence[DeviceCondition],
    request: DeviceRequest,
    total_w: Callable[[Sequence[DeviceCondition]], float | None],
) -> tuple[Sequence[DeviceCondition], str]:
    """The first set, by rank, within the budget, or none and why.

    A device is taken if the cheapest of those after it can complete the set within the budget. Devices of
    unknown draw and power limit must all be taken, and with them all that rank before them.
    """
    count, budget_w = request.num_devices, request.power_budget_w
    if budget_w is None:
        return usable[:count], ""

    def cheapest(rest: Sequence[DeviceCondition], count: int) -> list[DeviceCondition]:
        return sorted(rest, key=lambda device: device.busy_w(request.power_w) - (device.idle_w or 0.0))[
            :count
        ]

    unbounded = [rank for rank, device in enumerate(usable) if device.idle_w is None]
    chosen = list(usable[: unbounded[-1] + 1 if unbounded else 0])
    least_w = total_w([*chosen, *cheapest(usable[len(chosen) :], count - len(chosen))])
    start = f"power budget of {budget_w:g} W: "
    if len(chosen) > count or least_w is None:
        return (), start + "a device that would not be used has neither a known draw nor a known limit"
    if least_w > budget_w:
        needs = (
            f"{count} devices at {request.power_w:g} W make it {least_w:g} W with all else that draws power"
        )
        return (), f"{start}{needs}, {least_w - budget_w:g} W over"
    for rank in range(len(chosen), len(usable)):
        if len(chosen) == count:
            break
        rest = cheapest(usable[rank + 1 :], count - len(chosen) - 1)
        attempt = [*chosen, usable[rank], *rest]
        total = total_w(attempt)
        if len(attempt) == count and total is not None and total <= budget_w:
            chosen.append(usable[rank])
    return chosen, ""


def _reasons(
    usable: Sequence[DeviceCondition], chosen: Sequence[DeviceCondition], request: DeviceRequest
) -> dict[int, str]:
    last = _rank(chosen[-1]) if chosen else None
    reasons = {}
    for device in usable:
        if device in chosen:
            verdict = f"chosen: {_describe(device, request)}{_busy_note(device, request.power_w)}"
        elif last is None:
            verdict = f"may be used, but the job is refused: {_describe(device, request)}"
        elif _rank(device) < last:
            verdict = f"not chosen: with it the power budget of {request.power_budget_w:g} W would break"
        else:
            verdict = f"not needed: {_describe(device, request)}"
        reasons[device.device_id] = verdict
    return reasons


def _describe(device: DeviceCondition, request: DeviceRequest) -> str:
    heat = device.temperature_c
    parts = [
        "temperature unknown, so it comes last"
        if heat is None
        else f"{heat:g} C, {request.threshold_c - heat:g} below the threshold"
    ]
    parts.append(f"health {device.health.value if device.health else 'unknown'}")
    if device.throttle_reasons is None:
        parts.append("throttling unknown")
    return ", ".join(parts)


def _busy_note(device: DeviceCondition, estimated_w: float) -> str:
    """How the job's draw on a device differs from the estimate."""
    capped = device.capped_w(estimated_w)
    note = f", held to its limit of {capped:g} W, below the estimate" if capped < estimated_w else ""
    if device.power_w is None:
        note += f", its draw is unknown: {capped:g} W count"
    elif device.power_w > capped:
        note += f", draws {device.power_w:g} W, more than estimated"
    return note


def _idle_note(device: DeviceCondition) -> str:
    """What a device of unknown draw without a job takes from the budget."""
    if device.power_w is not None:
        return ""
    if device.power_limit_w is None:
        return "; its draw and its limit are unknown, so nothing bounds what it adds to the budget"
    return f"; its draw is unknown: its limit of {device.power_limit_w:g} W counts"
