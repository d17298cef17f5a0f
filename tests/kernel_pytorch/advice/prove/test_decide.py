"""The verdict on what was measured, and the time below which a measurement is wrong."""

import pytest
from advice_facts import facts

from kernel_pytorch.advice.facts import Fact, OperatorCost, Roofline
from kernel_pytorch.advice.prove.bound import least_seconds
from kernel_pytorch.advice.prove.decide import Measured, reason_against


def measured(gain=1.5, low=1.4, candidate_s=0.07, **fields):
    return Measured(gain=gain, low=low, candidate_s=candidate_s, **fields)


def test_a_proved_gain_is_kept():
    assert reason_against(measured(), facts()) == ""


def test_what_is_not_faster_is_reverted_with_the_reason_of_the_timing():
    assert reason_against(measured(1.2, 0.99, slow="no gain is proved"), facts()) == "no gain is proved"


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (measured(1.01, 1.001, slow="a gain of 1.010 is not worth a change"), True),
        (measured(1.01, 1.0, slow="no gain is proved"), False),
        (measured(1.5, 1.2, stopped="the gain fades", slow="the gain fades"), False),
    ],
)
def test_the_confirmation_is_passed_unless_the_interval_reaches_1(result, kept):
    assert reason_against(result, facts()) == result.slow
    assert (reason_against(result, facts(), final=True) == "") == kept


def test_a_time_below_the_bound_is_a_fault_of_the_measurement():
    reason = reason_against(measured(9.0, 8.0, 0.01), facts(), least_s=0.02)
    assert reason == "a fault of the measurement: 10 ms a call is below the 20 ms that the roofline allows"
    assert reason_against(measured(9.0, 8.0, 0.03), facts(), least_s=0.02) == ""


@pytest.mark.parametrize(
    ("base_ratio", "ratio", "gain", "kept"),
    [
        (1.0, 0.7, 0.9, True),  # it fits now, at whatever speed
        (1.0, 0.8, 0.9, False),  # it still does not fit, and is slower
        (1.0, 0.8, 1.5, True),  # nor does this, but it is faster
        (0.7, 0.8, 1.5, False),  # it does not fit any more
        (0.7, 0.74, 1.5, True),
    ],
)
def test_where_memory_is_short_what_fits_is_kept(base_ratio, ratio, gain, kept):
    known = facts(memory_limit=30_000_000)  # 0.75 of the peak
    result = measured(gain, gain - 0.1, peak_ratio=ratio, slow="slower" if gain < 1 else "")
    reason = reason_against(result, known, base_ratio=base_ratio)
    assert (reason == "") == kept, reason


def test_the_bound_is_that_of_the_flops_at_half_of_the_greatest_rate():
    known = facts(
        flops=Fact(value=1e9, basis="counted"),
        attention_share=Fact(value=0.0, basis="counted"),
        roofline=Roofline(flops={"float32": 1e10, "bfloat16": 2e10}, memory_gb_s=10.0),
    )
    assert least_seconds(known) == pytest.approx(0.025)  # 1e9 / 2e10 = 0.05 s
    assert least_seconds(known, threads=1) == pytest.approx(0.025)
    assert least_seconds(known, threads=4) == pytest.approx(0.0125)


def test_what_a_change_may_leave_out_does_not_count():
    """Half of attention, three quarters of convolutions: 1e9 - 0.4e9 / 2 - 0.2e9 * 3 / 4 = 0.65e9."""
    convolution = OperatorCost(name="aten::convolution", calls=1, seconds=0.1, flops=200_000_000, bytes=1)
    known = facts(
        flops=Fact(value=1e9, basis="counted"),
        attention_share=Fact(value=0.4, basis="counted"),
        operators=(convolution,),
        roofline=Roofline(flops={"float32": 1e10}, memory_gb_s=10.0),
    )
    assert least_seconds(known) == pytest.approx(0.0325)


@pytest.mark.parametrize(
    "unknown",
    [
        {"flops": Fact(why="an operator without a formula")},
        {"roofline": Roofline(flops={}, memory_gb_s=None, unmeasured={"float32": "no time"})},
    ],
)
def test_without_flops_or_rates_there_is_no_bound(unknown):
    assert least_seconds(facts(**unknown)) is None
