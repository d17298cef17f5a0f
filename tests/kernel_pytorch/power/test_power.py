"""Power limits: against all combinations tried one by one, in exact arithmetic where bounds are met."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_pytorch.power.efficiency import (
    LimitChoice,
    PowerMeasurement,
    Workload,
    carbon_g_h,
    share_budget,
)


def measured(power_limit_w: float, throughput: float, power_w: float | None = None) -> PowerMeasurement:
    return PowerMeasurement(power_limit_w=power_limit_w, throughput=throughput, power_w=power_w)


def best(found: list[PowerMeasurement], max_slowdown: float, num_devices: int = 1) -> LimitChoice:
    """The choice for a workload that has the power supply to itself."""
    workload = Workload(measurements=tuple(found), num_devices=num_devices)
    return share_budget({"job": workload}, max_slowdown).choices["job"]


measurements = st.builds(
    measured,
    st.integers(4, 16).map(lambda steps: 25.0 * steps),
    st.integers(1, 40).map(float),
    st.none() | st.integers(40, 400).map(float),
)
slowdowns = st.sampled_from([1.0, 1.05, 1.25, 2.0, 10.0])


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    return Workload(
        measurements=tuple(draw(st.lists(measurements, min_size=1, max_size=5))),
        num_devices=draw(st.integers(1, 4)),
        priority=float(draw(st.integers(1, 5))),
    )


def allowed(workload: Workload, max_slowdown: float) -> list[PowerMeasurement]:
    """Oracle: those that keep the bound, in fractions."""
    best = max(Fraction(m.throughput) for m in workload.measurements)
    bound = Fraction(str(max_slowdown))
    return [m for m in workload.measurements if best / Fraction(m.throughput) <= bound]


def energy(measurement: PowerMeasurement, num_devices: int) -> float:
    power = num_devices * measurement.power_limit_w if measurement.power_w is None else measurement.power_w
    return power / measurement.throughput


@given(st.lists(measurements, min_size=1, max_size=8), slowdowns, st.integers(1, 4))
def test_the_limit_of_least_energy_within_the_bound(
    found: list[PowerMeasurement], max_slowdown: float, num_devices: int
) -> None:
    choice = best(found, max_slowdown, num_devices)
    able = allowed(Workload(measurements=tuple(found)), max_slowdown)
    assert choice.energy_j == pytest.approx(min(energy(m, num_devices) for m in able))
    taken = [m for m in able if m.power_limit_w == choice.power_limit_w]
    assert any(energy(m, num_devices) == pytest.approx(choice.energy_j) for m in taken)
    assert choice.slowdown <= max_slowdown * (1 + 1e-9)


@given(st.dictionaries(st.sampled_from("abcd"), workloads(), min_size=1), slowdowns, st.integers(0, 4000))
def test_a_budget_is_shared_as_the_best_of_all_combinations(
    asked: dict[str, Workload], max_slowdown: float, budget_w: int
) -> None:
    share = share_budget(asked, max_slowdown, budget_w)
    able = [allowed(workload, max_slowdown) for workload in asked.values()]
    costs = {}
    for combination in itertools.product(*able):
        total = cost = 0.0
        for workload, m in zip(asked.values(), combination, strict=True):
            total += workload.num_devices * m.power_limit_w
            top = max(m.throughput for m in workload.measurements)
            base = min(energy(m, workload.num_devices) for m in workload.measurements if m.throughput == top)
            cost += workload.priority * energy(m, workload.num_devices) / base
        if total <= budget_w:
            costs[combination] = cost
    if not costs:
        assert share.choices == {}
        assert share.total_w > budget_w
        return
    assert list(share.choices) == list(asked)
    limits = [workload.num_devices * share.choices[name].power_limit_w for name, workload in asked.items()]
    assert share.total_w == sum(limits) <= budget_w
    cost = 0.0
    for name, workload in asked.items():
        top = max(m.throughput for m in workload.measurements)
        base = min(energy(m, workload.num_devices) for m in workload.measurements if m.throughput == top)
        cost += workload.priority * share.choices[name].energy_j / base
    assert cost == pytest.approx(min(costs.values()))


CURVE = [measured(400, 10.0, 380), measured(300, 9.5, 290), measured(200, 8.0, 195), measured(100, 3.0, 98)]


def test_energy_is_least_at_a_medium_limit() -> None:
    choice = best(CURVE, 1.25)
    assert (choice.power_limit_w, choice.power_w, choice.measured) == (200, 195, True)
    assert choice.energy_j == pytest.approx(195 / 8)  # W / (units / s) = J / unit
    assert choice.slowdown == pytest.approx(1.25)
    assert best(CURVE, 1.2).power_limit_w == 300
    assert best(CURVE, 1.0).power_limit_w == 400


def test_a_bound_that_is_met_exactly_holds_in_spite_of_rounding() -> None:
    for target in (0.1, 0.3, 0.6, 0.7, 0.8, 0.9):
        found = [measured(400, 3.0), measured(20, 3 * target)]
        assert best(found, 1 / target).power_limit_w == 20, target


def test_without_a_measured_draw_the_limits_stand_for_it() -> None:
    choice = best([measured(400, 10.0), measured(300, 9.0)], 1.25, num_devices=2)
    assert (choice.power_limit_w, choice.power_w, choice.measured) == (300, 600, False)
    assert choice.energy_j == pytest.approx(600 / 9)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
def test_of_equal_energies_the_lower_limit_then_the_faster(order: tuple[int, ...]) -> None:
    """All need 20 J a unit; those at 250 W have equal limits too."""
    found = [measured(300, 10.0, 200), measured(250, 5.0, 100), measured(250, 10.0, 200)]
    choice = best([found[i] for i in order], 10)
    assert (choice.power_limit_w, choice.slowdown) == (250, 1.0)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
def test_less_energy_is_worth_a_higher_limit(order: tuple[int, ...]) -> None:
    found = [measured(300, 10.0, 199), measured(250, 10.0, 200), measured(200, 5.0, 101)]
    assert best([found[i] for i in order], 10).power_limit_w == 300


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_energies_are_relative_to_the_least_at_the_fastest_limit(order: tuple[int, ...]) -> None:
    """Two measurements of the same speed: that of less energy, 20 J, is the base, whichever comes first.

    Against it job a needs 30 % more at 200 W, job b 28 %, so a gets the 300 W that only one can have.
    """
    fast = [measured(300, 10.0, 200), measured(310, 10.0, 290)]
    asked = {
        "a": Workload(measurements=(*(fast[i] for i in order), measured(200, 5.0, 130))),
        "b": Workload(measurements=(measured(300, 10.0, 200), measured(200, 5.0, 128))),
    }
    share = share_budget(asked, 2.0, 500)
    assert {name: choice.power_limit_w for name, choice in share.choices.items()} == {"a": 300, "b": 200}


def test_the_base_of_energies_is_the_fastest_limit_and_not_the_thriftiest() -> None:
    """From 300 to 200 W job a goes from 20 to 26 J, a fifth of its 30 J at 400 W; job b loses a quarter."""
    asked = {
        "a": Workload(
            measurements=(measured(400, 10.0, 300), measured(300, 8.0, 160), measured(200, 5.0, 130))
        ),
        "b": Workload(measurements=(measured(300, 10.0, 200), measured(200, 5.0, 125))),
    }
    share = share_budget(asked, 2.0, 500)
    assert {name: choice.power_limit_w for name, choice in share.choices.items()} == {"a": 200, "b": 300}


def test_a_budget_that_is_met_exactly_is_kept() -> None:
    """At the lowest limits, at the best ones, and in spite of rounding: 0.1 + 0.2 > 0.3."""
    asked = {
        "a": Workload(measurements=(measured(300, 10.0, 200), measured(200, 10.0, 250))),
        "b": Workload(measurements=(measured(100, 1.0),)),
    }
    assert share_budget(asked, 1.0, 300).total_w == 300
    assert share_budget(asked, 1.0, 400).total_w == 400
    assert share_budget(asked, 1.0, 399).total_w == 300
    assert share_budget(asked, 1.0, 299).choices == {}
    tiny = {
        "a": Workload(measurements=(measured(0.1, 1.0),)),
        "b": Workload(measurements=(measured(0.2, 1.0),)),
    }
    assert list(share_budget(tiny, 1.0, 0.3).choices) == ["a", "b"]


def test_of_equal_shares_the_one_with_the_lower_limits() -> None:
    """The budget has room for both at 300 W, where they would need the same energy."""
    same = Workload(measurements=(measured(300, 10.0, 200), measured(200, 10.0, 200)))
    share = share_budget({"a": same, "b": same}, 1.0, 600)
    assert share.total_w == 400


def test_a_refusal_names_the_least_slowdowns_that_the_budget_allows_exactly() -> None:
    asked = {"a": Workload(measurements=tuple(CURVE))}
    assert "'a' 1.05 at 300 W" in share_budget(asked, 1.0, 300).reason
    assert "'a' 1.25 at 200 W" in share_budget(asked, 1.0, 299).reason
    assert "'a' 3.33 at 100 W" in share_budget(asked, 1.0, 100).reason
    for target in (0.1, 0.3, 0.6, 0.7, 0.8, 0.9):  # a just keeps its bound, in spite of rounding
        kept = {
            "a": Workload(measurements=(measured(400, 3.0), measured(20, 3 * target))),
            "b": Workload(measurements=(measured(400, 1.0), measured(20, 0.01))),
        }
        assert share_budget(kept, 1 / target, 40).reason.endswith("are at best 'b' 100 at 20 W")
    two = {
        "a": Workload(measurements=(measured(0.2, 10.0), measured(0.1, 5.0))),
        "b": Workload(measurements=(measured(0.2, 10.0),)),
    }
    assert share_budget(two, 1.0, 0.3).reason.endswith("slowdowns are at best 'a' 2 at 0.1 W")


def test_a_larger_priority_gets_the_scarce_watts() -> None:
    """Both want 300 W and the budget has one such: who saves more, weighted, gets it."""
    found = (measured(300, 10.0, 250), measured(200, 5.0, 190))

    def share(a: float, b: float) -> list[float]:
        asked = {
            "a": Workload(measurements=found, priority=a),
            "b": Workload(measurements=found, priority=b),
        }
        return [choice.power_limit_w for choice in share_budget(asked, 2.0, 500).choices.values()]

    assert share(2, 1) == [300, 200]
    assert share(1, 2) == [200, 300]


@given(st.lists(workloads(), min_size=2, max_size=3), st.integers(100, 3000), st.sampled_from([0.125, 8.0]))
@example(
    [
        Workload(measurements=(measured(300, 10.0, 250), measured(200, 5.0, 190))),
        Workload(measurements=(measured(300, 10.0, 250), measured(200, 5.0, 187))),
    ],
    500,
    8.0,
)
def test_the_unit_of_work_does_not_matter(asked: list[Workload], budget_w: int, factor: float) -> None:
    """Work counted in eighths or by the eight is the same work; powers of 2 round nothing."""
    rescaled = [
        replace(
            asked[0],
            measurements=tuple(replace(m, throughput=factor * m.throughput) for m in asked[0].measurements),
        ),
        *asked[1:],
    ]
    before = share_budget({f"{n}": one for n, one in enumerate(asked)}, 2.0, budget_w)
    after = share_budget({f"{n}": one for n, one in enumerate(rescaled)}, 2.0, budget_w)
    assert [choice.power_limit_w for choice in before.choices.values()] == [
        choice.power_limit_w for choice in after.choices.values()
    ]


def test_says_which_bound_breaks_and_by_how_much() -> None:
    asked = {
        "a": Workload(measurements=tuple(CURVE)),
        "b": Workload(measurements=tuple(CURVE), num_devices=2),
    }
    share = share_budget(asked, 1.1, 800)
    assert share.choices == {}
    assert share.total_w == 900
    assert share.reason == (
        "slowdowns of at most 1.1 need limits of 900 W together, 100 W over the budget of 800 W; "
        "within the budget the slowdowns are at best 'a' 1.25 at 200 W, 'b' 1.25 at 200 W"
    )
    assert "the lowest limits that were measured still sum to 300 W" in share_budget(asked, 1.1, 299).reason


def test_many_workloads_are_shared_at_once() -> None:
    asked = {f"job {n}": Workload(measurements=tuple(CURVE), priority=1.0 + n % 3) for n in range(40)}
    share = share_budget(asked, 4.0, 40 * 180)
    assert share.total_w <= 40 * 180
    assert len(share.choices) == 40


def test_grams_an_hour() -> None:
    assert carbon_g_h(1000, 400) == 400  # a kilowatt for an hour is a kilowatt hour
    assert carbon_g_h(50, 300) == pytest.approx(15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power_limit_w": 0, "throughput": 1}, "power_limit_w must be positive, got 0"),
        ({"power_limit_w": 1, "throughput": -1}, "throughput must be positive, got -1"),
        ({"power_limit_w": 1, "throughput": math.nan}, "throughput must be positive, got nan"),
        ({"power_limit_w": 1, "throughput": 1, "power_w": 0}, "power_w must be positive, got 0"),
    ],
)
def test_measurements_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerMeasurement(**arguments)


def test_workloads_and_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="measurements must not be empty"):
        best([], 1.5)
    with pytest.raises(ValueError, match="num_devices must be positive, got 0"):
        best(CURVE, 1.5, num_devices=0)
    with pytest.raises(ValueError, match=r"max_slowdown must be at least 1, got 0\.8"):
        best(CURVE, 0.8)
    with pytest.raises(ValueError, match="priority must be positive, got 0"):
        Workload(measurements=tuple(CURVE), priority=0)
