"""Choice of devices: against all sets tried in order of rank, and against numpy's fit of a line."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor
from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.placement.heat import Decision, DeviceRequest, PlacedJob, choose_devices
from kernel_pytorch.power.condition import (
    HYSTERESIS_C,
    TREND_WINDOW_S,
    DeviceCondition,
    condition_of,
    is_cooling_down,
    slope_c_min,
    with_past,
)
from kernel_pytorch.watch.health import HealthState
from kernel_pytorch.watch.history import History

THRESHOLD_C = 85.0


def request(num_devices: int, power_w: float = 300, power_budget_w: float | None = None) -> DeviceRequest:
    return DeviceRequest(
        num_devices=num_devices, power_w=power_w, threshold_c=THRESHOLD_C, power_budget_w=power_budget_w
    )


def device(device_id: int, temperature_c: float | None = 50, **known: object) -> DeviceCondition:
    facts = {"kind": "gpu", "power_w": 60.0, "power_limit_w": 400.0, "throttle_reasons": (), **known}
    return DeviceCondition(device_id=device_id, temperature_c=temperature_c, **facts)


def choose(devices: list[DeviceCondition], num_devices: int = 1, **asked: float) -> Decision:
    return choose_devices(devices, {}, request(num_devices, **asked))


watts = st.integers(1, 16).map(lambda steps: 25.0 * steps)
conditions = st.builds(
    device,
    st.just(0),
    st.none() | st.integers(30, 95).map(float),
    slope_c_min=st.none() | st.integers(-3, 6).map(float),
    cooling_down=st.sampled_from([False, False, False, True]),
    throttle_reasons=st.sampled_from(
        [None, (), ("power_cap",), ("hw_thermal",), ("sw_thermal", "power_cap")]
    ),
    power_w=st.none() | watts,
    power_limit_w=st.none() | watts,
    health=st.sampled_from([None, HealthState.HEALTHY, HealthState.HEALTHY, *HealthState]),
)
sound_conditions = st.builds(
    device,
    st.just(0),
    st.integers(30, 60).map(float),
    power_w=watts,
    power_limit_w=st.none() | watts,
    health=st.sampled_from([None, HealthState.HEALTHY]),
)


@st.composite
def machines(draw: st.DrawFn, one: st.SearchStrategy[DeviceCondition] = conditions) -> list[DeviceCondition]:
    found = draw(st.lists(one, min_size=1, max_size=7))
    numbers = draw(st.permutations(range(len(found))))
    return [replace(known, device_id=number) for known, number in zip(found, numbers, strict=True)]


def usable(one: DeviceCondition) -> bool:
    """Oracle."""
    heat, slope = one.temperature_c, one.slope_c_min or 0
    if one.health is HealthState.FAILED or one.cooling_down:
        return False
    if set(one.throttle_reasons or ()) & {"hw_thermal", "sw_thermal", "hw_slowdown"}:
        return False
    return heat is None or (heat < THRESHOLD_C and heat + 5 * slope < THRESHOLD_C)


def rank(one: DeviceCondition) -> tuple[object, ...]:
    """Oracle."""
    health = ["healthy", "unknown", "degraded"].index(one.health.value if one.health else "unknown")
    return one.temperature_c is None, health, one.temperature_c or 0, one.device_id


def counted_w(one: DeviceCondition, estimate_w: float | None) -> float:
    """Oracle: what counts against a budget; infinite where nothing bounds it."""
    limit = math.inf if one.power_limit_w is None else one.power_limit_w
    if estimate_w is None:
        return limit if one.power_w is None else one.power_w
    return max(min(estimate_w, limit), 0 if one.power_w is None else one.power_w)


def total_w(devices: list[DeviceCondition], estimates_w: dict[int, float]) -> float:
    return sum(counted_w(one, estimates_w.get(one.device_id)) for one in devices)


@given(
    machines() | machines(sound_conditions),
    st.integers(1, 4),
    watts,
    st.none() | st.integers(1, 40).map(lambda steps: 50.0 * steps),
)
def test_the_first_set_in_order_of_rank_that_keeps_the_budget(
    devices: list[DeviceCondition], num_devices: int, power_w: float, budget_w: float | None
) -> None:
    decision = choose_devices(devices, {}, request(num_devices, power_w, budget_w))
    able = sorted(filter(usable, devices), key=rank)
    unbounded = [one for one in able if one.power_w is None and one.power_limit_w is None]
    forced = set()  # nobody is passed over for a device without bounds
    if budget_w is not None and unbounded:
        forced = {one.device_id for one in able[: able.index(unbounded[-1]) + 1]}
    fitting = (
        numbers
        for combination in itertools.combinations(able, num_devices)
        if forced <= set(numbers := [one.device_id for one in combination])
        and (budget_w is None or total_w(devices, dict.fromkeys(numbers, power_w)) <= budget_w)
    )
    expected = next(fitting, [])
    assert list(decision.devices) == expected
    assert (decision.refusal is None) == bool(expected)
    assert set(decision.reasons) == {one.device_id for one in devices}
    assert all(decision.reasons[n].startswith("chosen") == (n in expected) for n in decision.reasons)
    committed = total_w(devices, dict.fromkeys(expected, power_w))
    assert decision.committed_w == (None if math.isinf(committed) else pytest.approx(committed))


@given(
    machines() | machines(sound_conditions),
    st.lists(st.tuples(st.integers(1, 3), watts, st.booleans()), max_size=12),
    watts,
)
def test_jobs_get_disjoint_devices_and_the_budget_is_kept(
    devices: list[DeviceCondition], steps: list[tuple[int, float, bool]], budget_step_w: float
) -> None:
    budget_w, jobs = 6 * budget_step_w, {}
    for number, (num_devices, power_w, release) in enumerate(steps):
        if release and jobs:
            jobs.pop(next(iter(jobs)))
        decision = choose_devices(devices, jobs, request(num_devices, power_w, budget_w))
        taken = {n for job in jobs.values() for n in job.devices}
        assert not taken & set(decision.devices)
        if decision.refusal is None:
            assert len(set(decision.devices)) == num_devices
            jobs[f"job {number}"] = PlacedJob(devices=decision.devices, power_w=power_w)
            estimates = {n: job.power_w for job in jobs.values() for n in job.devices}
            assert total_w(devices, estimates) <= budget_w
            assert decision.committed_w == pytest.approx(total_w(devices, estimates))


@given(machines(), st.integers(1, 4))
def test_a_device_of_unknown_temperature_comes_last_and_says_so(
    devices: list[DeviceCondition], num_devices: int
) -> None:
    decision = choose(devices, num_devices)
    unknown = {one.device_id for one in devices if one.temperature_c is None}
    picked = [n in unknown for n in decision.devices]
    assert picked == sorted(picked)
    if any(picked):
        assert all(
            n in decision.devices for n in (d.device_id for d in devices if usable(d)) if n not in unknown
        )
    assert all("temperature unknown" in decision.reasons[n] for n in decision.devices if n in unknown)


SERIES = st.lists(st.tuples(st.floats(0.5, 20), st.none() | st.floats(20, 100)), min_size=0, max_size=60)


@given(SERIES, st.sampled_from([0.0, 1.75e9]))
def test_slope_is_that_of_a_fitted_line(series: list[tuple[float, float | None]], start_s: float) -> None:
    times = start_s + np.cumsum([gap for gap, _ in series])
    heat = np.array([np.nan if value is None else value for _, value in series])
    slope = slope_c_min(times, heat)
    recent = ~np.isnan(heat) & (times >= (times[-1] if len(times) else 0) - TREND_WINDOW_S)
    if recent.sum() < 5 or np.ptp(times[recent]) < 60:
        assert slope is None
    else:
        per_second = np.polyfit(times[recent] - times[-1], heat[recent], 1)[0]
        assert slope == pytest.approx(60 * per_second, rel=1e-6, abs=1e-6)


def test_one_step_of_a_sensor_is_no_steep_slope() -> None:
    times = np.arange(0, 61.0)
    heat = np.where(times > 30, 61.0, 60.0)
    assert slope_c_min(times, heat) == pytest.approx(1.5, abs=0.03)


@given(st.lists(st.none() | st.integers(70, 95), max_size=40))
@example([85])
@example([90, 80])
@example([90, 79])
def test_cooling_down_as_a_machine_of_two_states(heat: list[int | None]) -> None:
    hot = False
    for value in heat:
        if value is not None and value >= THRESHOLD_C:
            hot = True
        elif value is not None and value < THRESHOLD_C - HYSTERESIS_C:
            hot = False
    series = np.array([np.nan if value is None else value for value in heat], dtype=float)
    assert is_cooling_down(series, THRESHOLD_C) is hot


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (device(0, 85), "85 C reaches the threshold of 85 C"),
        (device(0, 60, throttle_reasons=("sw_thermal",)), "throttled by heat (sw_thermal)"),
        (device(0, 60, throttle_reasons=("hw_slowdown",)), "throttled by heat (hw_slowdown)"),
        (device(0, 60, health=HealthState.FAILED), "failed"),
        (device(0, 82, cooling_down=True), "82 C, was at 85 C or over and not below 80 C since"),
        (
            device(0, None, cooling_down=True),
            "temperature unknown, was at 85 C or over and not below 80 C since",
        ),
        (device(0, 75, slope_c_min=2), "75 C and 2.0 C a minute warmer: reaches 85 C in 5.0 minutes"),
    ],
)
def test_what_may_not_be_used_and_why(condition: DeviceCondition, reason: str) -> None:
    decision = choose([condition])
    assert decision.devices == ()
    assert decision.reasons == {0: reason}
    assert decision.refusal is not None
    start = "num_devices must be at most 0 here, got 1: of 1 devices 0 fit; left out: gpu:0 "
    assert decision.refusal.startswith(start)


@pytest.mark.parametrize(
    "condition",
    [
        device(0, 84.9),
        device(0, 75, slope_c_min=1.9),
        device(0, 84, slope_c_min=-2),
        device(0, 60, throttle_reasons=("power_cap", "sync_boost")),
        device(0, 60, health=HealthState.DEGRADED),
        device(0, None, power_w=None, power_limit_w=None, throttle_reasons=None),
    ],
)
def test_what_may_be_used(condition: DeviceCondition) -> None:
    assert choose([condition]).devices == (0,)


def test_order_health_before_heat_then_heat_then_id() -> None:
    devices = [
        device(0, None),
        device(1, 40, health=HealthState.DEGRADED),
        device(2, 70, health=HealthState.HEALTHY),
        device(3, 60, health=HealthState.HEALTHY),
        device(5, 60, health=HealthState.HEALTHY),
        device(4, 60, health=HealthState.HEALTHY),
        device(6, 30),
    ]
    assert choose(devices, 7).devices == (3, 4, 5, 2, 6, 1, 0)


def test_says_what_it_did_with_each_device() -> None:
    devices = [device(0, 50), device(1, 61, health=HealthState.HEALTHY), device(2, 52), device(3, 90)]
    jobs = {"other": PlacedJob(devices=(2,), power_w=200)}
    decision = choose_devices(devices, jobs, request(1))
    assert decision.reasons == {
        0: "not needed: 50 C, 35 below the threshold, health unknown",
        1: "chosen: 61 C, 24 below the threshold, health healthy",
        2: "taken by job 'other'",
        3: "90 C reaches the threshold of 85 C",
    }
    assert choose_devices(devices, jobs, request(3)).refusal == (
        "num_devices must be at most 2 here, got 3: of 4 devices 2 fit; "
        "left out: gpu:2 taken; left out: gpu:3 too hot"
    )


def test_a_refusal_groups_devices_by_reason() -> None:
    devices = [device(n, 60, health=HealthState.FAILED) for n in range(4)]
    devices += [device(4, 90, kind="cpu"), device(5, 90, kind=None)]
    assert choose(devices).refusal == (
        "num_devices must be at most 0 here, got 1: of 6 devices 0 fit; "
        "left out: gpu:0-3 failed; left out: cpu:4, device:5 too hot"
    )


def test_a_cooler_device_is_passed_over_for_the_budget() -> None:
    devices = [device(0, 40, power_w=100), device(1, 50, power_w=300)]
    decision = choose(devices, 1, power_budget_w=450)
    assert decision.devices == (1,)  # 100 + 300; the cooler one would make it 300 + 300
    assert decision.reasons[0] == "not chosen: with it the power budget of 450 W would break"
    assert decision.committed_w == 400


def test_placed_jobs_count_and_cheaper_devices_complete_the_set() -> None:
    devices = [device(n, 40 + n, power_w=60) for n in range(3)] + [
        device(3, 50, power_w=60, power_limit_w=100)
    ]
    jobs = {"other": PlacedJob(devices=(0,), power_w=350)}
    decision = choose_devices(devices, jobs, request(2, 300, 810))
    assert decision.devices == (1, 3)  # 350 + 300 + 60 + 100; with 2 in place of 3 it would be 1010
    assert decision.committed_w == 810


def test_an_estimate_above_the_limit_counts_as_the_limit_and_is_told() -> None:
    decision = choose([device(0, power_limit_w=72.0)], power_budget_w=72)
    assert decision.estimated_w == decision.committed_w == 72
    assert "held to its limit of 72 W, below the estimate" in decision.reasons[0]


def test_more_draw_than_estimated_counts() -> None:
    decision = choose([device(0, power_w=350.0)], power_w=200)
    assert (decision.estimated_w, decision.committed_w) == (200, 350)
    assert "draws 350 W, more than estimated" in decision.reasons[0]
    assert choose([device(0, power_w=200.0)], power_w=200).reasons[0].endswith("health unknown")


def test_unknown_draw_counts_as_the_limit_and_is_told() -> None:
    devices = [device(0, power_w=None), device(1, 80, power_w=None, power_limit_w=350.0)]
    decision = choose(devices, power_budget_w=650)
    assert decision.committed_w == 650
    assert "its draw is unknown: 300 W count" in decision.reasons[0]
    assert decision.reasons[1].endswith("; its draw is unknown: its limit of 350 W counts")
    refused = choose(devices, power_budget_w=649)
    assert refused.refusal == (
        "power budget of 649 W: 1 devices at 300 W make it 650 W with all else that draws power, 1 W over"
    )


def test_a_draw_without_any_bound_breaks_a_budget_unless_the_job_gets_that_device() -> None:
    unbounded = device(1, None, power_w=None, power_limit_w=None)
    devices = [device(0), unbounded, device(2)]
    refused = choose(devices, 2, power_budget_w=1e6)
    assert refused.devices == ()
    assert refused.refusal == (
        "power budget of 1e+06 W: a device that would not be used has neither a known draw nor a known limit"
    )
    assert refused.reasons[1].endswith("so nothing bounds what it adds to the budget")
    assert choose(devices, 3, power_budget_w=900).devices == (0, 2, 1)
    assert choose([unbounded], power_budget_w=300).committed_w == 300
    assert choose(devices, 2).devices == (0, 2)
    hot = device(1, 90, power_w=None, power_limit_w=None)
    assert choose([device(0), hot], power_budget_w=1e6).devices == ()


def test_conditions_from_facts_readings_history_and_health() -> None:
    info = [
        DeviceInfo(
            device_id=n, kind="gpu", index=n, vendor=HardwareVendor.NVIDIA, name="GPU", power_limit_w=400
        )
        for n in range(3)
    ]
    history = History([0, 1], 100)
    for second in range(0, 100, 10):
        hot = DeviceReading(temperature_c=86.0 if second == 0 else 81.0)
        warming = DeviceReading(temperature_c=50 + second / 30, power_w=200.0, power_limit_w=250.0)
        snapshot = Snapshot(time_s=second, devices={0: warming, 1: hot})
        history.append(snapshot)
    now = [condition_of(one, snapshot) for one in info]
    zero, one, two = with_past(now, history, THRESHOLD_C, {0: HealthState.DEGRADED})
    assert zero.slope_c_min == pytest.approx(2.0)
    assert (zero.cooling_down, zero.health, zero.power_limit_w) == (False, HealthState.DEGRADED, 250)
    assert (one.cooling_down, one.health, one.power_limit_w) == (True, None, 400)
    assert two == DeviceCondition(device_id=2, kind="gpu", power_limit_w=400)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_devices": 0}, "num_devices must be positive, got 0"),
        ({"power_w": 0}, "power_w must be positive, got 0"),
        ({"power_w": math.inf}, "power_w must be positive, got inf"),
        ({"threshold_c": math.nan}, "threshold_c must be finite, got nan"),
        ({"power_budget_w": -1}, "power_budget_w must be positive, got -1"),
    ],
)
def test_requests_are_checked(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DeviceRequest(**{"num_devices": 1, "power_w": 300, "threshold_c": 85, **wrong})


def test_a_number_of_devices_is_an_integer() -> None:
    with pytest.raises(TypeError, match="num_devices must be an int, got float"):
        request(1.5)
