"""The latest readings of all devices, as arrays."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from operator import itemgetter
from types import NoneType
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..machine.readings import DeviceReading, Snapshot
from .steady_clock import SteadyClock

_FIELDS = msgspec.structs.fields(DeviceReading)
_NUMERIC = [
    number
    for number, field in enumerate(_FIELDS)
    if NoneType in get_args(field.type) and set(get_args(field.type)) <= {int, float, bool, NoneType}
]
METRICS = tuple(_FIELDS[number].name for number in _NUMERIC)
"""The numeric fields of a reading that may be unknown; truth values as 0 or 1."""
_numbers = itemgetter(*_NUMERIC)
_UNKNOWN = DeviceReading()


def as_array(snapshot: Snapshot, device_ids: Sequence[int]) -> NDArray[np.float64]:
    """``[devices, metrics]`` in the orders of ``device_ids`` and :data:`METRICS`; NaN where unknown."""
    devices, read = snapshot.devices, msgspec.structs.astuple
    rows = [_numbers(read(devices.get(device_id, _UNKNOWN))) for device_id in device_ids]
    return np.array(rows, dtype=np.float64).reshape(len(device_ids), len(METRICS))


def slope_per_s(times: NDArray[np.float64], values: NDArray[np.float64]) -> float | None:
    """Slope of the least-squares line through the values; None where it is not determined.

    Args:
        times: ``[t]``, seconds.
        values: ``[t]``, NaN where unknown.
    """
    known = ~np.isnan(values)
    if not known.any():
        return None
    since = times[known] - times[known].mean()
    spread = float(since @ since)
    return float(since @ (values[known] - values[known].mean())) / spread if spread > 0 else None


class History:
    """A ring buffer of the numeric fields of the devices' readings, one row for each snapshot.

    Args:
        device_ids: the columns, in this order.
        capacity: number of snapshots to keep.

    Raises:
        ValueError: a capacity that is not positive, or a device id twice.
    """

    def __init__(self, device_ids: Sequence[int], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be positive, got {capacity}")
        if len(set(device_ids)) < len(device_ids):
            raise ValueError(f"device_ids must be distinct, got {list(device_ids)}")
        self.device_ids = tuple(device_ids)
        self.capacity = capacity
        self._clock = SteadyClock()
        self._times = np.empty(capacity)
        self._steady = np.empty(capacity)
        self._values = np.empty((capacity, len(self.device_ids), len(METRICS)))
        self._count = 0
        self._lock = threading.Lock()

    def append(self, snapshot: Snapshot) -> None:
        values = as_array(snapshot, self.device_ids)
        with self._lock:
            row = self._count % self.capacity
            self._times[row], self._values[row] = snapshot.time_s, values
            self._steady[row] = self._clock.update(snapshot.time_s)
            self._count += 1

    def __len__(self) -> int:
        return min(self._count, self.capacity)

    def times(self) -> NDArray[np.float64]:
        """Time stamps ``[t]``, oldest first, in seconds since 1970. For display: they may go back."""
        with self._lock:
            return self._in_order(self._times)

    def series(self, metric: str) -> NDArray[np.float64]:
        """``[t, devices]``, the oldest first, devices in the order of ``device_ids``; NaN where unknown.

        Raises:
            ValueError: a metric that is not one of :data:`METRICS`.
        """
        return self.timed_series([metric])[1][metric]

    def timed_series(
        self, metrics: Sequence[str]
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Several series and their times, consistent while another thread appends.

        Returns:
            ``[t]``, the oldest first: steady seconds (:class:`.SteadyClock`), which never go back and
            ignore jumps of the system clock; and :meth:`series` by metric.

        Raises:
            ValueError: a metric that is not one of :data:`METRICS`.
        """
        for metric in metrics:
            if metric not in METRICS:
                raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        with self._lock:
            return self._in_order(self._steady), {
                metric: self._in_order(self._values[:, :, METRICS.index(metric)]) for metric in metrics
            }

    def _in_order(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._count <= self.capacity:
            return np.array(rows[: self._count])
        first = self._count % self.capacity
        return np.concatenate((rows[first:], rows[:first]))
