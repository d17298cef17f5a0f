"""What is said about a component's health, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class HealthState(Enum):
    """Unknown is None."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It works, slower or with errors that were put right."""
    FAILED = "failed"
    """Nothing should run on it."""


_BY_SEVERITY = (HealthState.HEALTHY, None, HealthState.DEGRADED, HealthState.FAILED)


def severity(state: HealthState | None) -> int:
    """The order of states: healthy 0, unknown 1, degraded 2, failed 3."""
    return _BY_SEVERITY.index(state)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One observation about a component."""

    kind: str
    """The rule: temperature, ecc_corrected, carrier_lost and so on."""
    state: HealthState
    """What it makes of the component; healthy: it is worth telling, no more."""
    value: float
    """What was read, in the threshold's unit."""
    threshold: float
    """From which value on the rule holds."""
    since_s: float
    """Since when it has held, in seconds since 1970."""
    text: str
    """For people: value, unit and threshold."""


@dataclass(frozen=True, kw_only=True)
class ComponentHealth:
    """A device, a disk, an interface, the memory."""

    state: HealthState | None
    evidence: tuple[Evidence, ...] = ()
    unchecked: tuple[str, ...] = ()
    """Rules that could not be applied: what they need was never read."""
    reason: str | None = None
    """Why the state is unknown."""


def judge(evidence: Iterable[Evidence], unchecked: Iterable[str], unknown: str | None) -> ComponentHealth:
    """The worst of the evidence; without any, healthy, or unknown for the reason ``unknown``."""
    found = tuple(evidence)
    worst = max((item.state for item in found), key=severity, default=HealthState.HEALTHY)
    if worst is HealthState.HEALTHY and unknown is not None:
        return ComponentHealth(state=None, evidence=found, unchecked=tuple(unchecked), reason=unknown)
    return ComponentHealth(state=worst, evidence=found, unchecked=tuple(unchecked))
