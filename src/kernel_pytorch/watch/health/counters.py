"""Rules about the devices' error counters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .evidence import Evidence, HealthState
from .thresholds import Thresholds
from .windows import HOUR_S, MINUTE_S, Increases, Numbers, Sustained


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """A counter that must not grow by so much."""

    metric: str
    threshold: str
    """Field of :class:`.Thresholds`."""
    window_s: float | None
    """None: it counts since the first reading, or the reset, for no time heals it."""
    from_zero: bool = False
    """What the first reading shows counts too: the device was not reset since."""
    state: HealthState = HealthState.DEGRADED
    text: str


_RULES = (
    _Rule(
        metric="ecc_uncorrected",
        threshold="ecc_uncorrected",
        window_s=None,
        from_zero=True,
        state=HealthState.FAILED,
        text="memory errors that could not be corrected",
    ),
    _Rule(
        metric="ecc_corrected",
        threshold="ecc_corrected_per_hour",
        window_s=HOUR_S,
        text="corrected memory errors within an hour",
    ),
    _Rule(
        metric="retired_pages",
        threshold="retired_pages",
        window_s=None,
        text="memory pages or rows given up",
    ),
    _Rule(
        metric="nvlink_errors",
        threshold="nvlink_errors_per_minute",
        window_s=MINUTE_S,
        text="NVLink errors within a minute",
    ),
    _Rule(
        metric="pcie_replays",
        threshold="pcie_replays_per_minute",
        window_s=MINUTE_S,
        text="PCIe replays within a minute",
    ),
)
COUNTERS = tuple(rule.metric for rule in _RULES)


class CounterHealth:
    """How much the error counters of ``count`` devices grew, and where that is too much."""

    def __init__(self, count: int) -> None:
        self._grown = {
            rule.metric: Increases(count, rule.window_s or HOUR_S, from_zero=rule.from_zero)
            for rule in _RULES
        }
        self._too_many = {rule.metric: Sustained(count) for rule in _RULES}

    def update(self, now: float, values: dict[str, Numbers], thresholds: Thresholds) -> None:
        for rule in _RULES:
            grown = self._grown[rule.metric]
            grown.update(now, values[rule.metric])
            holds = self._increase(rule) >= getattr(thresholds, rule.threshold)
            self._too_many[rule.metric].update(now, holds, grown.known)

    def _increase(self, rule: _Rule) -> Numbers:
        grown = self._grown[rule.metric]
        return grown.since_baseline() if rule.window_s is None else grown.in_window()

    def evidence(self, index: int, thresholds: Thresholds) -> Iterator[Evidence]:
        for rule in _RULES:
            too_many = self._too_many[rule.metric]
            if too_many.holds[index]:
                value = float(self._increase(rule)[index])
                threshold = getattr(thresholds, rule.threshold)
                yield Evidence(
                    kind=rule.metric,
                    state=rule.state,
                    value=value,
                    threshold=threshold,
                    since_s=float(too_many.since_s[index]),
                    text=f"{value:g} {rule.text} (from {threshold:g} on)",
                )

    def unchecked(self, index: int) -> list[str]:
        """Counters that were never read."""
        return [metric for metric in COUNTERS if not self._grown[metric].known[index]]

    def reset(self, index: int) -> None:
        for metric in COUNTERS:
            self._grown[metric].reset(index)
            self._too_many[metric].reset(index)
