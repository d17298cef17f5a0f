"""Rules about error counters, of devices, network interfaces and the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .evidence import Evidence, HealthState
from .thresholds import Thresholds
from .windows import HOUR_S, MINUTE_S, Increases, Numbers, Sustained, Truths


@dataclass(frozen=True, kw_only=True)
class GrowthRule:
    """An error counter that must not grow by a threshold or more."""

    kind: str
    """Kind of the evidence; for a device, also the field of the reading."""
    threshold: str
    """Field of :class:`.Thresholds`."""
    window_s: float | None
    """None: growth since the first reading or the last reset, because such faults are permanent."""
    from_zero: bool = False
    """Count the first reading as growth from zero: the device was not reset after those errors."""
    state: HealthState = HealthState.DEGRADED
    text: str


DEVICE_RULES = (
    GrowthRule(
        kind="ecc_uncorrected",
        threshold="ecc_uncorrected",
        window_s=None,
        from_zero=True,
        state=HealthState.FAILED,
        text="memory errors that could not be corrected",
    ),
    GrowthRule(
        kind="ecc_corrected",
        threshold="ecc_corrected_per_hour",
        window_s=HOUR_S,
        text="corrected memory errors within an hour",
    ),
    GrowthRule(
        kind="retired_pages",
        threshold="retired_pages",
        window_s=None,
        text="memory pages or rows given up",
    ),
    GrowthRule(
        kind="nvlink_errors",
        threshold="nvlink_errors_per_minute",
        window_s=MINUTE_S,
        text="NVLink errors within a minute",
    ),
    GrowthRule(
        kind="pcie_replays",
        threshold="pcie_replays_per_minute",
        window_s=MINUTE_S,
        text="PCIe replays within a minute",
    ),
)
NIC_ERRORS = GrowthRule(
    kind="nic_errors",
    threshold="nic_errors_per_minute",
    window_s=MINUTE_S,
    text="errors within a minute",
)
OOM_KILLS = GrowthRule(
    kind="oom_kills",
    threshold="oom_kills_per_hour",
    window_s=HOUR_S,
    text="processes killed for want of memory within an hour",
)


class Growth:
    """One rule applied to the counters of ``count`` components."""

    def __init__(self, rule: GrowthRule, count: int = 1) -> None:
        self._rule = rule
        self._grown = Increases(count, rule.window_s or HOUR_S, from_zero=rule.from_zero)
        self._too_much = Sustained(count)

    def update(self, now: float, values: Numbers | Sequence[float | None], thresholds: Thresholds) -> None:
        """``now``: seconds, not less than before; ``values``: NaN or None where unknown."""
        self._grown.update(now, np.asarray(values, dtype=np.float64))
        holds = self._increase() >= getattr(thresholds, self._rule.threshold)
        self._too_much.update(now, holds, self.known)

    def _increase(self) -> Numbers:
        return self._grown.since_baseline() if self._rule.window_s is None else self._grown.in_window()

    @property
    def known(self) -> Truths:
        """Whether the counter was ever read."""
        return self._grown.known

    def evidence(self, thresholds: Thresholds, index: int = 0) -> Iterator[Evidence]:
        """One item if growth reached the threshold, else none."""
        if self._too_much.holds[index]:
            value = float(self._increase()[index])
            threshold = getattr(thresholds, self._rule.threshold)
            yield Evidence(
                kind=self._rule.kind,
                state=self._rule.state,
                value=value,
                threshold=threshold,
                since_s=float(self._too_much.since_s[index]),
                text=f"{value:g} {self._rule.text} (from {threshold:g} on)",
            )

    def reset(self, index: int) -> None:
        """Forget the growth so far."""
        self._grown.reset(index)
        self._too_much.reset(index)
