"""Rules about devices, all at once: arrays with a place for each device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...machine.facts import DeviceInfo
from ...machine.readings import DeviceReading, Snapshot
from ..history import METRICS, as_array
from .clock_loss import clock_losses
from .counters import COUNTERS, CounterHealth
from .evidence import ComponentHealth, Evidence, HealthState, judge
from .thresholds import Thresholds
from .windows import Numbers, Sustained, Truths
from .xids import XidReports

_FAULTY_THROTTLING = frozenset(("hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal"))
_SILENT = DeviceReading()
_SAME_S = 0.05
"""Readings are not made faster than that: the difference is that of two clocks."""
_CPU_RULES = ("temperature", "throttling", "clock_loss")
_GPU_RULES = (*_CPU_RULES, "memory_temperature", "remap_failed", *COUNTERS)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Something that must not go on for long."""

    kind: str
    threshold: Callable[[Thresholds, DeviceInfo], float]
    for_s: Callable[[Thresholds], float]
    value: Callable[[float, float], float] = lambda latest, seconds: latest
    """What evidence tells, from the latest value and the seconds that it has gone on."""
    state: HealthState = HealthState.DEGRADED
    text: str
    """With ``value``, ``threshold``, ``seconds`` and ``why``."""


_RULES = (
    _Rule(
        kind="silent",
        threshold=lambda limits, device: limits.silent_s,
        for_s=lambda limits: limits.silent_s,
        value=lambda latest, seconds: seconds,
        state=HealthState.FAILED,
        text="no answer for {value:.0f} s, having answered before",
    ),
    _Rule(
        kind="temperature",
        threshold=lambda limits, device: highest_c(limits, device),
        for_s=lambda limits: limits.temperature_sustained_s,
        text="{value:.0f} C, {threshold:.0f} or more for {seconds:.0f} s",
    ),
    _Rule(
        kind="memory_temperature",
        threshold=lambda limits, device: limits.memory_temperature_c,
        for_s=lambda limits: limits.temperature_sustained_s,
        text="memory at {value:.0f} C, {threshold:.0f} or more for {seconds:.0f} s",
    ),
    _Rule(
        kind="throttling",
        threshold=lambda limits, device: limits.throttle_sustained_s,
        for_s=lambda limits: limits.throttle_sustained_s,
        value=lambda latest, seconds: seconds,
        text="slowed down for {value:.0f} s: {why}",
    ),
    _Rule(
        kind="clock_loss",
        threshold=lambda limits, device: limits.clock_loss_share,
        for_s=lambda limits: limits.clock_loss_sustained_s,
        text="clock {value:.0%} below that of its equals for {seconds:.0f} s under load",
    ),
    _Rule(
        kind="remap_failed",
        threshold=lambda limits, device: 1.0,
        for_s=lambda limits: 0.0,
        state=HealthState.FAILED,
        text="a faulty memory row could not be remapped",
    ),
    _Rule(
        kind="lost",
        threshold=lambda limits, device: 1.0,
        for_s=lambda limits: 0.0,
        state=HealthState.FAILED,
        text="its driver cannot open it: reset it, or reboot",
    ),
)


def highest_c(limits: Thresholds, device: DeviceInfo) -> float:
    return limits.temperature_c if device.kind == "gpu" else limits.cpu_temperature_c


class DeviceHealth:
    """What has been seen of the devices of one node, and what follows from it.

    Args:
        devices: whose ids are those of the snapshots.
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
        self._counters = CounterHealth(count)
        self._xids = [XidReports() for _ in self._ids]

    def number_anew(self, devices: Sequence[DeviceInfo]) -> None:
        """Give the same devices, in the same order, other ids."""
        self.devices = tuple(devices)
        self._ids = [device.device_id for device in devices]

    def update(self, now: float, snapshot: Snapshot) -> None:
        """Take in the next snapshot, at ``now`` seconds, which are not less than before."""
        self._time_s = now
        limits = self.thresholds
        values = dict(zip(METRICS, as_array(snapshot, self._ids).T, strict=True))
        readings = [snapshot.devices.get(device_id, _SILENT) for device_id in self._ids]
        answers = np.array([not reading.silent for reading in readings], dtype=bool)
        self._answered |= answers
        # The reading of the snapshot before, again, is no answer.
        ages_s = np.array([reading.age_s for reading in readings])
        answers &= (ages_s == 0) | (now - ages_s > self._read_s + _SAME_S)
        self._read_s[answers] = (now - ages_s)[answers]
        everywhere = np.zeros(len(readings))
        self._hold("silent", everywhere, ~answers, self._answered)
        highest = np.array([highest_c(limits, device) for device in self.devices])
        for kind, celsius, hot in (
            ("temperature", values["temperature_c"], highest),
            ("memory_temperature", values["memory_temperature_c"], limits.memory_temperature_c),
        ):
            self._hold(kind, celsius, celsius >= hot, ~np.isnan(celsius))
        throttled = np.zeros(len(readings), dtype=bool)
        known = np.zeros(len(readings), dtype=bool)
        for index, reading in enumerate(readings):
            if reading.throttle_reasons is not None:
                reasons = _FAULTY_THROTTLING.intersection(reading.throttle_reasons)
                self._throttling[index], known[index], throttled[index] = reasons, True, bool(reasons)
            if reading.xids:
                self._xids[index].add(now, reading.xids)
        self._hold("throttling", everywhere, throttled, known)
        # One that somebody gave a lower power limit is no straggler.
        limits_w = values["power_limit_w"]
        losses, told = clock_losses(
            [f"{name} at {limit_w:.0f} W" for name, limit_w in zip(self._names, limits_w, strict=True)],
            values["sm_clock_mhz"],
            values["utilization"],
            loss=limits.clock_loss_share,
            load=limits.load_share,
        )
        self._hold("clock_loss", losses, losses >= limits.clock_loss_share, told)
        remap = values["remap_failed"]
        self._hold("remap_failed", remap, remap > 0, ~np.isnan(remap))
        lost = values["lost"]
        self._hold("lost", lost, lost > 0, ~np.isnan(lost))
        self._counters.update(now, values, limits)

    def _hold(self, kind: str, values: Numbers, holds: Truths, known: Truths) -> None:
        self._held[kind].update(self._time_s, holds, known)
        self._latest[kind] = np.where(known, values, self._latest[kind])

    def reset(self, index: int) -> None:
        """Forget what was seen of the ``index``-th device: it was repaired or reset. Its counters go on."""
        for held in self._held.values():
            held.reset(index)
        self._answered[index] = False
        self._counters.reset(index)
        self._xids[index].clear()

    def health(self, index: int) -> ComponentHealth:
        """Of the ``index``-th device."""
        rules = _GPU_RULES if self.devices[index].kind == "gpu" else _CPU_RULES
        never_read = self._counters.unchecked(index)
        never_read += [kind for kind, held in self._held.items() if not held.seen[index]]
        unchecked = [rule for rule in rules if rule in never_read]
        unknown = None
        if not self._answered[index]:
            unknown = "it has not answered so far"
        elif len(unchecked) == len(rules):
            unknown = f"nothing that the rules need can be read: {', '.join(rules)}"
        return judge(self._evidence(index), unchecked, unknown)

    def _evidence(self, index: int) -> Iterator[Evidence]:
        for rule in _RULES:
            held = self._held[rule.kind]
            seconds = float(held.seconds[index])
            if held.holds[index] and seconds >= rule.for_s(self.thresholds):
                value = rule.value(float(self._latest[rule.kind][index]), seconds)
                threshold = rule.threshold(self.thresholds, self.devices[index])
                why = ", ".join(sorted(self._throttling[index]))
                yield Evidence(
                    kind=rule.kind,
                    state=rule.state,
                    value=value,
                    threshold=threshold,
                    since_s=float(held.since_s[index]),
                    text=rule.text.format(value=value, threshold=threshold, seconds=seconds, why=why),
                )
        yield from self._counters.evidence(index, self.thresholds)
        yield from self._xids[index].evidence(self._time_s)
