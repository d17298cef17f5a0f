"""Rules about a network interface."""

from __future__ import annotations

from collections.abc import Iterator

from ...machine.readings import NicReading
from .counters import NIC_ERRORS, Growth
from .evidence import ComponentHealth, Evidence, HealthState, judge
from .thresholds import Thresholds


class NicHealth:
    """The health of an interface, unknown until it first has a carrier: it may be unused."""

    def __init__(self) -> None:
        self._had_carrier = False
        self._fell_off = False
        self._lost_since: float | None = None
        self._errors = Growth(NIC_ERRORS)

    def update(self, now: float, nic: NicReading, thresholds: Thresholds) -> None:
        """Take in the next reading, at ``now`` seconds, which are not less than before."""
        self._fell_off = nic.fell_off
        if nic.carrier:
            self._had_carrier, self._lost_since = True, None
        elif nic.carrier is False and self._had_carrier and self._lost_since is None:
            self._lost_since = now
        self._errors.update(now, [nic.errors], thresholds)

    def health(self, now: float, thresholds: Thresholds) -> ComponentHealth:
        unchecked = [] if self._had_carrier else ["carrier_lost"]
        unchecked += [] if self._errors.known[0] else ["nic_errors"]
        unknown = None if self._had_carrier else "it has had no carrier so far"
        return judge(self._evidence(now, thresholds), unchecked, unknown)

    def _evidence(self, now: float, thresholds: Thresholds) -> Iterator[Evidence]:
        if self._lost_since is not None and now - self._lost_since >= thresholds.carrier_lost_s:
            lost = now - self._lost_since
            what = "no carrier, its device has left the bus," if self._fell_off else "no carrier"
            yield Evidence(
                kind="carrier_lost",
                state=HealthState.FAILED,
                value=lost,
                threshold=thresholds.carrier_lost_s,
                since_s=self._lost_since,
                text=f"{what} for {lost:.0f} s, having had one before",
            )
        yield from self._errors.evidence(thresholds)
