"""Rules about devices, applied to all at once: arrays with one entry for each device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...machine.facts import DeviceInfo
from ...machine.readings import DeviceReading, Snapshot
from ..history import METRICS, as_array
from .clock_loss import clock_losses
from .counters import DEVICE_RULES, Growth
from .evidence import ComponentHealth, Evidence, HealthState, judge
from .thresholds import Thresholds
from .windows import Numbers, Sustained, Truths
from .xids import XidReports

_FAULTY_THROTTLING = frozenset(("hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal"))
_NO_ANSWER = DeviceReading()
_SLOWDOWN_MARGIN_C = 2.0
_SAME_S = 0.05
"""Readings are not made faster than that: the difference is that of two clocks."""
_CPU_RULES = ("temperature", "throttling", "clock_loss")
_GPU_RULES = (
    *(*_CPU_RULES, "memory_temperature", "remap_failed", "remap_pending"),
    *(rule.kind for rule in DEVICE_RULES),
)


def max_temperature_c(thresholds: Thresholds, device: DeviceInfo) -> float:
    """Degrees Celsius at or above which a device is too hot.

    The configured threshold or, if lower, 2 C below the device's slowdown temperature. At that temperature a
    GPU cuts its clock to half or less, so it may never get hotter; normal operation ends at least 2 C below.

    Source: NVIDIA, nvidia-smi, "GPU Slowdown Temp" and "GPU Max Operating Temp": 89 and 85 C (A100), -2 and
    0 C from the limit (H100); NVML, nvmlClocksEventReasonHwThermalSlowdown.
    """
    highest = thresholds.temperature_c if device.kind == "gpu" else thresholds.cpu_temperature_c
    slowdown = device.slowdown_temperature_c
    return highest if slowdown is None else min(highest, slowdown - _SLOWDOWN_MARGIN_C)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """A value that must not stay at or above a threshold for some time."""

    kind: str
    metric: str
    threshold: Callable[[Thresholds, DeviceInfo], float] = lambda thresholds, device: 1.0
    """Default: for a truth value."""
    for_s: Callable[[Thresholds], float] = lambda thresholds: 0.0
    shows_seconds: bool = False
    """Evidence shows the duration and its threshold instead of the value and its threshold."""
    state: HealthState = HealthState.DEGRADED
    text: str
    """Format string with fields ``value``, ``threshold``, ``seconds`` and ``why``."""


_RULES = (
    _Rule(
        kind="silent",
        metric="silent",
        for_s=lambda thresholds: thresholds.silent_s,
        shows_seconds=True,
        state=HealthState.FAILED,
        text="no answer for {value:.0f} s, having answered before",
    ),
    _Rule(
        kind="temperature",
        metric="temperature_c",
        threshold=max_temperature_c,
        for_s=lambda thresholds: thresholds.temperature_sustained_s,
        text="{value:.0f} C, {threshold:.0f} or more for {seconds:.0f} s",
    ),
    _Rule(
        kind="memory_temperature",
        metric="memory_temperature_c",
        threshold=lambda thresholds, device: thresholds.memory_temperature_c,
        for_s=lambda thresholds: thresholds.temperature_sustained_s,
        text="memory at {value:.0f} C, {threshold:.0f} or more for {seconds:.0f} s",
    ),
    _Rule(
        kind="throttling",
        metric="throttling",
        for_s=lambda thresholds: thresholds.throttle_sustained_s,
        shows_seconds=True,
        text="slowed down for {value:.0f} s: {why}",
    ),
    _Rule(
        kind="clock_loss",
        metric="clock_loss",
        threshold=lambda thresholds, device: thresholds.clock_loss_share,
        for_s=lambda thresholds: thresholds.clock_loss_sustained_s,
        text="clock {value:.0%} below that of its equals for {seconds:.0f} s under load",
    ),
    _Rule(
        kind="remap_failed",
        metric="remap_failed",
        state=HealthState.FAILED,
        text="a faulty memory row could not be remapped",
    ),
    _Rule(
        kind="remap_pending",
        metric="remap_pending",
        text="the remap of a faulty memory row waits for a reset",
    ),
    _Rule(
        kind="lost",
        metric="lost",
        state=HealthState.FAILED,
        text="its driver cannot open it: reset it, or reboot",
    ),
)


class DeviceHealth:
    """The health of the devices of one node, from the snapshots so far.

    Args:
        devices: their ids are those of the snapshots.
        thresholds: may be replaced at any time.
    """

    def __init__(self, devices: Sequence[DeviceInfo], thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.devices = tuple(devices)
        self._ids = [device.device_id for device in devices]
        self._names = [device.name for device in devices]
        count = len(self._ids)
        self._time_s = -np.inf
        self._answered: Truths = np.zeros(count, dtype=bool)
        self._read_s: Numbers = np.full(count, -np.inf)
        """When the latest reading was made."""
        self._held = {rule.kind: Sustained(count) for rule in _RULES}
        self._latest: dict[str, Numbers] = {rule.kind: np.full(count, np.nan) for rule in _RULES}
        self._throttling: list[frozenset[str]] = [frozenset()] * count
        self._growth = {rule.kind: Growth(rule, count) for rule in DEVICE_RULES}
        self._xids = [XidReports() for _ in self._ids]

    def update(self, now: float, snapshot: Snapshot) -> None:
        """Take in the next snapshot, at ``now`` seconds, which are not less than before."""
        self._time_s = now
        readings = [snapshot.devices.get(device_id, _NO_ANSWER) for device_id in self._ids]
        for index, reading in enumerate(readings):
            if reading.throttle_reasons is not None:
                self._throttling[index] = _FAULTY_THROTTLING.intersection(reading.throttle_reasons)
            if reading.xids:
                self._xids[index].add(now, reading.xids)
        values = self._values(snapshot, readings)
        for rule in _RULES:
            value, known = values[rule.metric], ~np.isnan(values[rule.metric])
            threshold = [rule.threshold(self.thresholds, device) for device in self.devices]
            self._held[rule.kind].update(now, value >= np.array(threshold, dtype=np.float64), known)
            self._latest[rule.kind] = np.where(known, value, self._latest[rule.kind])
        for kind, growth in self._growth.items():
            growth.update(now, values[kind], self.thresholds)

    def _values(self, snapshot: Snapshot, readings: Sequence[DeviceReading]) -> dict[str, Numbers]:
        """``[devices]`` for each metric of a rule, NaN where unknown; truth values are 0 or 1."""
        values = dict(zip(METRICS, as_array(snapshot, self._ids).T, strict=True))
        silent = np.array([reading.silent for reading in readings], dtype=bool)
        self._answered |= ~silent
        # The reading of an earlier snapshot, once more, is no answer.
        ages_s = np.array([reading.age_s for reading in readings])
        silent |= (ages_s > 0) & (self._time_s - ages_s <= self._read_s + _SAME_S)
        self._read_s = np.where(silent, self._read_s, self._time_s - ages_s)
        values["silent"] = np.where(self._answered, silent, np.nan)
        values["throttling"] = np.array(
            [
                np.nan if reading.throttle_reasons is None else bool(reasons)
                for reading, reasons in zip(readings, self._throttling, strict=True)
            ],
            dtype=np.float64,
        )
        # A device with a lower power limit is not a straggler.
        power_limits_w = values["power_limit_w"]
        values["clock_loss"] = clock_losses(
            [f"{name} at {limit_w:.0f} W" for name, limit_w in zip(self._names, power_limits_w, strict=True)],
            values["sm_clock_mhz"],
            values["utilization"],
            loss=self.thresholds.clock_loss_share,
            load=self.thresholds.load_share,
        )
        return values

    def reset(self, index: int) -> None:
        """Forget what was seen of the ``index``-th device: it was repaired or reset. Counters continue."""
        for held in self._held.values():
            held.reset(index)
        for growth in self._growth.values():
            growth.reset(index)
        self._answered[index] = False
        self._xids[index].clear()

    def health(self, index: int) -> ComponentHealth:
        """Health of the ``index``-th device."""
        rules = _GPU_RULES if self.devices[index].kind == "gpu" else _CPU_RULES
        read = {kind for kind, held in self._held.items() if held.seen[index]}
        read |= {kind for kind, growth in self._growth.items() if growth.known[index]}
        unchecked = [rule for rule in rules if rule not in read]
        unknown = None
        if not self._answered[index]:
            unknown = "it has not answered so far"
        elif len(unchecked) == len(rules):
            unknown = f"nothing that the rules need can be read: {', '.join(rules)}"
        return judge(self._evidence(index), unchecked, unknown)

    def _evidence(self, index: int) -> Iterator[Evidence]:
        for rule in _RULES:
            held = self._held[rule.kind]
            seconds, for_s = float(held.seconds[index]), rule.for_s(self.thresholds)
            if held.holds[index] and seconds >= for_s:
                value = float(self._latest[rule.kind][index])
                threshold = rule.threshold(self.thresholds, self.devices[index])
                if rule.shows_seconds:
                    value, threshold = seconds, for_s
                why = ", ".join(sorted(self._throttling[index]))
                yield Evidence(
                    kind=rule.kind,
                    state=rule.state,
                    value=value,
                    threshold=threshold,
                    since_s=float(held.since_s[index]),
                    text=rule.text.format(value=value, threshold=threshold, seconds=seconds, why=why),
                )
        for growth in self._growth.values():
            yield from growth.evidence(self.thresholds, index)
        yield from self._xids[index].evidence(self._time_s)
