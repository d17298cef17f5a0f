"""A device's performance from its history: means, maxima and the trend of its temperature."""

from __future__ import annotations

import numpy as np

from ..history import History, slope_per_s
from .windows import HOUR_S

_REPORTED = ("temperature_c", "utilization", "power_w")


def performance_of(history: History, device_id: int, hours: float) -> dict[str, float | int | None]:
    """Performance over the last ``hours`` before the newest sample, ignoring jumps of the system clock.

    Returns:
        ``avg_`` and ``max_`` of ``temperature_c``, ``utilization`` (a share of 1) and ``power_w``;
        ``temperature_trend_c_per_hour``, the least-squares slope of three temperatures or more; ``samples``;
        and ``covered_s``, the seconds from the first sample to the last.
        None where nothing is known.
    """
    if device_id not in history.device_ids:  # a device of another node
        times, series = np.empty(0), {metric: np.empty(0) for metric in _REPORTED}
    else:
        column = history.device_ids.index(device_id)
        times, values = history.timed_series(_REPORTED)
        recent = times >= times[-1] - hours * HOUR_S if len(times) else np.zeros(0, dtype=bool)
        times = times[recent]
        series = {metric: values[metric][recent, column] for metric in _REPORTED}
    found: dict[str, float | int | None] = {}
    for metric, value in series.items():
        known = value[~np.isnan(value)]
        found[f"avg_{metric}"] = float(known.mean()) if len(known) else None
        found[f"max_{metric}"] = float(known.max()) if len(known) else None
    temperatures = series["temperature_c"]
    slope = slope_per_s(times, temperatures) if np.count_nonzero(~np.isnan(temperatures)) >= 3 else None
    found["temperature_trend_c_per_hour"] = None if slope is None else slope * HOUR_S
    found["samples"] = len(times)
    found["covered_s"] = float(times[-1] - times[0]) if len(times) else None
    return found
