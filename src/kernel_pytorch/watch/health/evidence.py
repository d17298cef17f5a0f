"""A component's health state and the evidence for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class HealthState(Enum):
    """State of a component. An unknown state is None."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It works, but slower, or with errors that were corrected."""
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
    """State that the component has because of it. Healthy: for information only."""
    value: float
    """The value read, in the threshold's unit."""
    threshold: float
    """The smallest value to which the rule applies."""
    since_s: float
    """When it began, in seconds since 1970 by the clock that stamped the last reading."""
    text: str
    """For people: value, unit and threshold."""


@dataclass(frozen=True, kw_only=True)
class ComponentHealth:
    """Health of a device, a disk, a network interface, the CPUs or the memory."""

    state: HealthState | None
    evidence: tuple[Evidence, ...] = ()
    unchecked: tuple[str, ...] = ()
    """Rules that could not be applied because their readings are missing."""
    reason: str | None = None
    """Why the state is unknown."""


def judge(
    evidence: Iterable[Evidence], unchecked: Iterable[str] = (), unknown: str | None = None
) -> ComponentHealth:
    """The worst state of the evidence.

    Args:
        unchecked: rules that could not be applied.
        unknown: why a component without degrading evidence is unknown, not healthy.
    """
    found = tuple(evidence)
    at_least = HealthState.HEALTHY if unknown is None else None
    state = max((at_least, *(item.state for item in found)), key=severity)
    reason = unknown if state is None else None
    return ComponentHealth(state=state, evidence=found, unchecked=tuple(unchecked), reason=reason)
