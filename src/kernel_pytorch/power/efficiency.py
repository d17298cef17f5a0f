"""Power limits that save energy within a bound on slowdown, from measurements. Pure functions.

A lower limit costs little time at first, so the energy of a unit of work is least below the highest limit
(J. You, J.-W. Chung, M. Chowdhury, "Zeus: Understanding and Optimizing GPU Energy Consumption of DNN
Training", NSDI 2023). Slowdown is a ratio of times for the same work: the best throughput that was measured
over the throughput at the limit in question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_ROUNDING = 1 + 1e-9
"""Tolerance for floating point in comparisons: 1 / 0.9 against 10 / 9, 0.1 + 0.2 against 0.3."""


@dataclass(frozen=True, kw_only=True)
class PowerMeasurement:
    """Throughput and draw of a workload at a power limit.

    Raises:
        ValueError: a value that is not positive and finite.
    """

    power_limit_w: float
    """Of each device."""
    throughput: float
    """Units of work a second, of all devices together."""
    power_w: float | None = None
    """Mean draw of all devices together; None: not measured."""

    def __post_init__(self) -> None:
        for name in ("power_limit_w", "throughput", "power_w"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Measurements of a workload, and its weight.

    Raises:
        ValueError: no measurements, or a number of devices or a priority that is not positive.
    """

    measurements: tuple[PowerMeasurement, ...]
    num_devices: int = 1
    priority: float = 1.0
    """Weight of its energy in the sum that is minimised."""

    def __post_init__(self) -> None:
        if not self.measurements:
            raise ValueError("measurements must not be empty: a power limit is chosen among those measured")
        if self.num_devices < 1:
            raise ValueError(f"num_devices must be positive, got {self.num_devices}")
        if not 0 < self.priority < math.inf:
            raise ValueError(f"priority must be positive, got {self.priority}")


@dataclass(frozen=True, kw_only=True)
class LimitChoice:
    """The power limit chosen for a workload, and its effects."""

    power_limit_w: float
    """Of each device."""
    power_w: float
    """Mean draw of all devices: measured or, where it was not, the sum of their limits."""
    measured: bool
    """Whether ``power_w`` was measured; if not, power and energy are upper bounds derived from the limit."""
    energy_j: float
    """For a unit of work."""
    slowdown: float
    """Time for a unit of work, relative to the fastest measurement."""


@dataclass(frozen=True, kw_only=True)
class BudgetShare:
    """Power limits of all workloads within a budget."""

    choices: dict[str, LimitChoice]
    """By workload; empty if the budget and the bounds on slowdown cannot be kept together."""
    total_w: float
    """Sum of the limits: of the choices or, if there are none, the least within the bounds on slowdown."""
    reason: str


_Entry = tuple[float, float, tuple[LimitChoice, ...]]
"""Sum of limits in watts, cost, and a choice for each workload so far."""


def share_budget(
    workloads: Mapping[str, Workload], max_slowdown: float, power_budget_w: float | None = None
) -> BudgetShare:
    """A limit for each workload, so that all their limits together stay within the budget.

    Minimises the sum of priority times energy for a unit of work, each relative to the energy at the fastest
    limit of its workload, since units of work differ. Of equal sums the one with the lower limits is taken,
    of equal limits the faster. The energy is ``power_w / throughput``; where the draw was not measured the
    limits stand for it, an upper bound. Exact: every combination is considered, and dropped only if another
    has neither higher limits nor more energy.

    Args:
        max_slowdown: bound on each workload's slowdown, at least 1.
        power_budget_w: for the sum of the limits of all devices of all workloads; None: unlimited. Limits
            are summed and not draws, since only limits are enforced.
    """
    budget_w = math.inf if power_budget_w is None else power_budget_w
    options = {name: _choices(workload, max_slowdown) for name, workload in workloads.items()}
    least_w = math.fsum(
        min(_limits_w(workloads[name], choice) for choice in options[name]) for name in options
    )
    if least_w > budget_w * _ROUNDING:
        return BudgetShare(
            choices={}, total_w=least_w, reason=_impossible(workloads, max_slowdown, least_w, budget_w)
        )
    front: list[_Entry] = [(0.0, 0.0, ())]
    for name, workload in workloads.items():
        fastest = options[name][0]
        front = _undominated(
            (
                watts + _limits_w(workload, choice),
                cost + workload.priority * choice.energy_j / fastest.energy_j,
                (*chosen, choice),
            )
            for watts, cost, chosen in front
            for choice in options[name]
        )
        front = [entry for entry in front if entry[0] <= budget_w * _ROUNDING]
    total_w, _, chosen = front[-1]
    spare = "no budget" if power_budget_w is None else f"budget {budget_w:g} W"
    return BudgetShare(
        choices=dict(zip(workloads, chosen, strict=True)),
        total_w=total_w,
        reason=f"least energy at slowdowns of at most {max_slowdown:g}; limits sum to {total_w:g} W, {spare}",
    )


def carbon_g_h(power_w: float, intensity_g_kwh: float) -> float:
    """Grams of CO2 an hour at a steady power, for electricity that emits ``intensity_g_kwh`` a kWh."""
    return power_w / 1000 * intensity_g_kwh


def _choices(workload: Workload, max_slowdown: float) -> list[LimitChoice]:
    """Measurements within the bound, fastest first; equally fast ones by energy."""
    if not max_slowdown >= 1:
        raise ValueError(f"max_slowdown must be at least 1, got {max_slowdown}")
    best = max(measurement.throughput for measurement in workload.measurements)
    choices = []
    for measurement in workload.measurements:
        limit_w = workload.num_devices * measurement.power_limit_w
        power_w = limit_w if measurement.power_w is None else measurement.power_w
        choice = LimitChoice(
            power_limit_w=measurement.power_limit_w,
            power_w=power_w,
            measured=measurement.power_w is not None,
            energy_j=power_w / measurement.throughput,
            slowdown=best / measurement.throughput,
        )
        if choice.slowdown <= max_slowdown * _ROUNDING:
            choices.append(choice)
    return sorted(choices, key=lambda choice: (choice.slowdown, choice.energy_j))


def _limits_w(workload: Workload, choice: LimitChoice) -> float:
    return workload.num_devices * choice.power_limit_w


def _undominated(entries: Iterable[_Entry]) -> list[_Entry]:
    """Entries of less cost than any other with at most their watts, by rising watts and falling cost."""
    front: list[_Entry] = []
    for entry in sorted(entries, key=lambda entry: entry[:2]):
        if not front or entry[1] < front[-1][1]:
            front.append(entry)
    return front


def _impossible(
    workloads: Mapping[str, Workload], max_slowdown: float, least_w: float, budget_w: float
) -> str:
    """Which bound must be relaxed, and by how much."""
    problem = (
        f"slowdowns of at most {max_slowdown:g} need limits of {least_w:g} W together, "
        f"{least_w - budget_w:g} W over the budget of {budget_w:g} W"
    )
    options = {name: _choices(workload, math.inf) for name, workload in workloads.items()}
    for bound in sorted({choice.slowdown for choices in options.values() for choice in choices}):
        lowest = {
            name: min(
                (choice for choice in choices if choice.slowdown <= bound),
                key=lambda choice: choice.power_limit_w,
            )
            for name, choices in options.items()
        }
        total_w = math.fsum(_limits_w(workloads[name], choice) for name, choice in lowest.items())
        if total_w <= budget_w * _ROUNDING:
            slower = ", ".join(
                f"{name!r} {choice.slowdown:.3g} at {choice.power_limit_w:g} W"
                for name, choice in lowest.items()
                if choice.slowdown > max_slowdown * _ROUNDING
            )
            return f"{problem}; within the budget the slowdowns are at best {slower}"
    lowest_w = math.fsum(
        min(_limits_w(workloads[name], choice) for choice in choices) for name, choices in options.items()
    )
    return f"{problem}; the lowest limits that were measured still sum to {lowest_w:g} W"
