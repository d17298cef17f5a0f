"""The condition of a device: temperature, power and health, from the readings so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..machine.facts import DeviceInfo
from ..machine.readings import DeviceReading, Snapshot
from ..watch.health import HealthState
from ..watch.history import History, slope_per_s

TREND_WINDOW_S = 120.0
TREND_MIN_SPAN_S = 60.0
"""Sensors report whole degrees: one step in 60 s is a slope of at most 1.5 C a minute."""
TREND_MIN_POINTS = 5
HYSTERESIS_C = 5.0
"""How far below the threshold a device that reached it must fall before it gets a job again."""


def slope_c_min(times_s: NDArray[np.float64], temperatures_c: NDArray[np.float64]) -> float | None:
    """Least-squares slope over the last :data:`TREND_WINDOW_S`, in degrees Celsius a minute.

    Args:
        times_s: [t], ascending.
        temperatures_c: [t], NaN where unknown.

    Returns:
        None for fewer than :data:`TREND_MIN_POINTS` readings, or less than :data:`TREND_MIN_SPAN_S` between
        the first and the last.
    """
    if not len(times_s):
        return None
    use = ~np.isnan(temperatures_c) & (times_s >= times_s[-1] - TREND_WINDOW_S)
    times, values = times_s[use], temperatures_c[use]
    if len(times) < TREND_MIN_POINTS or np.ptp(times) < TREND_MIN_SPAN_S:
        return None
    slope = slope_per_s(times, values)
    return None if slope is None else 60 * slope


def is_cooling_down(temperatures_c: NDArray[np.float64], threshold_c: float) -> bool:
    """Whether the threshold was reached, and the temperature not read :data:`HYSTERESIS_C` below it since.

    Args:
        temperatures_c: [t], oldest first, NaN where unknown.
    """
    (hot,) = np.nonzero(temperatures_c >= threshold_c)
    return bool(len(hot)) and not bool((temperatures_c[hot[-1] :] < threshold_c - HYSTERESIS_C).any())


@dataclass(frozen=True, kw_only=True)
class DeviceCondition:
    """Temperature, power and health of a device; None: unknown."""

    device_id: int
    kind: Literal["gpu", "cpu"] | None = None
    hidden: str | None = None
    """Why this process may not use it; None: it may."""
    temperature_c: float | None = None
    slope_c_min: float | None = None
    cooling_down: bool = False
    throttle_reasons: tuple[str, ...] | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    health: HealthState | None = None

    def capped_w(self, estimated_w: float) -> float:
        """Power that a job may draw here: the estimate, or the power limit if lower."""
        return estimated_w if self.power_limit_w is None else min(estimated_w, self.power_limit_w)

    def busy_w(self, estimated_w: float) -> float:
        """Budgeted power with a job: :meth:`capped_w` or, if higher, the measured draw."""
        return max(self.capped_w(estimated_w), self.power_w or 0.0)

    @property
    def idle_w(self) -> float | None:
        """Budgeted power without a job: the measured draw, else the power limit; None: both unknown."""
        return self.power_limit_w if self.power_w is None else self.power_w


def condition_of(device: DeviceInfo, snapshot: Snapshot) -> DeviceCondition:
    """Condition from a reading. Without one (a device of another node) only the power limit is known."""
    reading = snapshot.devices.get(device.device_id, DeviceReading())
    limit = device.power_limit_w if reading.power_limit_w is None else reading.power_limit_w
    return DeviceCondition(
        device_id=device.device_id,
        kind=device.kind,
        hidden=device.hidden,
        temperature_c=reading.temperature_c,
        throttle_reasons=reading.throttle_reasons,
        power_w=reading.power_w,
        power_limit_w=limit,
    )


def with_past(
    conditions: Iterable[DeviceCondition],
    history: History,
    threshold_c: float,
    health: Mapping[int, HealthState | None],
) -> list[DeviceCondition]:
    """Add the temperature trend of ``history``, and ``health`` by device id, to conditions."""
    times_s, series = history.timed_series(["temperature_c"])
    past = dict(zip(history.device_ids, series["temperature_c"].T, strict=True))
    nothing = np.full(len(times_s), np.nan)
    return [
        replace(
            condition,
            slope_c_min=slope_c_min(times_s, past.get(condition.device_id, nothing)),
            cooling_down=is_cooling_down(past.get(condition.device_id, nothing), threshold_c),
            health=health.get(condition.device_id),
        )
        for condition in conditions
    ]


def committed_w(devices: Sequence[DeviceCondition], estimates_w: Mapping[int, float]) -> float | None:
    """Watts to budget for all devices; None if an idle one has no known draw or power limit.

    Args:
        devices: all that share the budget.
        estimates_w: estimated draw by id of the devices that have a job.
    """
    counted = [
        device.busy_w(estimates_w[device.device_id]) if device.device_id in estimates_w else device.idle_w
        for device in devices
    ]
    known = [watts for watts in counted if watts is not None]
    return math.fsum(known) if len(known) == len(counted) else None
