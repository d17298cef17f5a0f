"""The verdict on what was measured, and the time below which a measurement is wrong."""

import pytest
from advice_facts import facts

from kernel_pytorch.advice.facts import Fact, OperatorCost, Roofline
from kernel_pytorch.advice.prove.bound import least_seconds
from kernel_pytorch.advice.prove.decide import Measured, reason_against


def measured(gain=1.5, low=1.4, candidate_s=0.07, **fields):
    return Measured(gain=gain, low=low, base_s=gain * candidate_s, candidate_s=candidate_s, **fields)


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


def test_a_bound_that_the_best_so_far_is_below_says_nothing():
    assert reason_against(measured(1.5, 1.4, 0.01), facts(), least_s=0.016) == ""
    assert reason_against(measured(1.5, 1.4, 0.01), facts(), least_s=0.014)


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
    short = facts(memory_limit=30_000_000)  # 0.75 of the peak
    result = measured(gain, gain - 0.1, peak_ratio=ratio, slow="slower" if gain < 1 else "")
    reason = reason_against(result, short, base_ratio=base_ratio)
    assert (reason == "") == kept, reason


def known(**changes):
    dense = {"bound": 0.1, "flops": 1e9, "attention_share": 0.0, "threads": 2}
    rates = Roofline(flops={"float32": 1e10}, memory_gb_s=10.0)
    return facts(**{**dense, "roofline": rates, **changes})


def test_the_least_time_is_the_bound_with_a_margin():
    assert least_seconds(known()) == pytest.approx(0.08)
    assert least_seconds(known(), threads=1) == pytest.approx(0.08)
    assert least_seconds(known(), threads=4) == pytest.approx(0.04)


def test_what_a_change_may_leave_out_does_not_count():
    """Half of attention, three quarters of convolutions: 1 - 0.4 / 2 - 0.2 * 3 / 4 = 0.65."""
    convolution = OperatorCost(name="aten::convolution", calls=1, seconds=0.1, flops=200_000_000, bytes=1)
    assert least_seconds(known(attention_share=0.4, operators=(convolution,))) == pytest.approx(0.052)


def test_lower_precision_may_be_as_much_faster_as_its_products():
    assert least_seconds(known(), lossless=False) == pytest.approx(0.02)
    rates = Roofline(flops={"float32": 1e10, "bfloat16": 1e11}, memory_gb_s=10.0)
    assert least_seconds(known(roofline=rates), lossless=False) == pytest.approx(0.008)
    assert least_seconds(known(roofline=rates)) == pytest.approx(0.08)


def test_without_a_bound_there_is_no_least_time():
    assert least_seconds(known(bound=Fact(why="no products"))) is None
