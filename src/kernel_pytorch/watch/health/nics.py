"""Rules about a network interface."""

from __future__ import annotations

from collections.abc import Iterator

from ...machine.readings import NicReading
from .evidence import ComponentHealth, Evidence, HealthState, judge
from .thresholds import Thresholds
from .windows import MINUTE_S, Counter


class NicHealth:
    """What has been seen of an interface. Without a carrier from the start it is unknown: maybe unused."""

    def __init__(self) -> None:
        self._had_carrier = False
        self._there = True
        self._lost_since: float | None = None
        self._errors = Counter(MINUTE_S)

    def update(self, now: float, nic: NicReading | None, thresholds: Thresholds) -> None:
        """``nic`` is None where the interface is gone."""
        self._there = nic is not None
        carrier = nic.carrier if nic is not None else False
        self._had_carrier = self._had_carrier or bool(carrier)
        if carrier:
            self._lost_since = None
        elif carrier is False and self._had_carrier and self._lost_since is None:
            self._lost_since = now
        self._errors.update(now, nic.errors if nic is not None else None, thresholds.nic_errors_per_minute)

    def health(self, now: float, thresholds: Thresholds) -> ComponentHealth:
        unchecked = [] if self._had_carrier else ["carrier_lost"]
        unchecked += [] if self._errors.known else ["nic_errors"]
        unknown = None
        if not self._had_carrier:
            unknown = "it has had no carrier so far" if self._there else "it is gone, and had no carrier"
        return judge(self._evidence(now, thresholds), unchecked, unknown)

    def _evidence(self, now: float, thresholds: Thresholds) -> Iterator[Evidence]:
        limit = thresholds.carrier_lost_s
        if self._lost_since is not None and now - self._lost_since >= limit:
            lost = now - self._lost_since
            yield Evidence(
                kind="carrier_lost",
                state=HealthState.FAILED,
                value=lost,
                threshold=limit,
                since_s=self._lost_since,
                text=f"{'no carrier' if self._there else 'gone'} for {lost:.0f} s, having had one before",
            )
        yield from self._errors.evidence(
            "nic_errors", thresholds.nic_errors_per_minute, "errors within a minute"
        )
