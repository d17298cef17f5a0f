from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.watch.steady_clock import SteadyClock


def steady(*stamps: float) -> list[float]:
    clock = SteadyClock()
    return [clock.update(stamp) for stamp in stamps]


@pytest.mark.parametrize("interval_s", [0.1, 61.0, 120.0, 600.0, 1e6])
def test_the_first_interval_may_have_any_length(interval_s: float):
    stamps = [1e9 + number * interval_s for number in range(12)]
    assert steady(*stamps) == stamps


def test_a_jump_is_longer_than_20_intervals_and_than_a_minute():
    for interval_s, jump_s in ((4.0, 80.0), (100.0, 2000.0), (1.0, 60.0), (0.25, 60.0)):
        assert steady(0, interval_s, interval_s + jump_s) == [0, interval_s, interval_s + jump_s]
        assert steady(0, interval_s, interval_s + jump_s + 0.5) == [0, interval_s, interval_s]


def test_the_longest_of_the_last_eight_intervals_counts():
    """A telemetry that reads every 100 s, and somebody who asks in between."""
    by_hand = [200.0 + number / 8 for number in range(8)]
    assert steady(0, 100, *by_hand, 300) == [0, 100, *by_hand, 300]
    assert steady(0, 100, *by_hand, 201, 300) == [0, 100, *by_hand, 201, 201]


def test_after_a_jump_any_interval_is_one():
    """Readings each second that become readings every 100 s."""
    assert steady(0, 1, 2, 102, 202, 302) == [0, 1, 2, 2, 102, 202]
    assert steady(0, 1, 3601, 3602, 7202, 7203) == [0, 1, 1, 2, 2, 3]  # a machine that sleeps twice


def test_a_clock_that_is_set_back_goes_on():
    clock = SteadyClock()
    assert [clock.update(stamp) for stamp in (1000, 1001, 901, 902, 903)] == [1000, 1001, 1001, 1002, 1003]
    assert clock.skipped_s == -100
    assert steady(1000, 1001, 901, 962) == [1000, 1001, 1001, 1001]  # the known interval is still a second
    assert steady(5, 5, 5, 70) == [5, 5, 5, 70]  # readings of one moment are no interval


@given(st.lists(st.floats(-1e5, 1e5), max_size=40), st.sampled_from([0.0, 1.8e9]))
def test_steady_seconds_never_go_back_and_never_run_ahead(steps: list[float], start_s: float):
    stamps = start_s + np.cumsum([0.0, *steps])
    clock = SteadyClock()
    seconds = []
    for stamp in stamps:
        seconds.append(clock.update(float(stamp)))
        assert seconds[-1] + clock.skipped_s == pytest.approx(stamp, abs=1e-5)
    for (before, after), (first, second) in zip(
        itertools.pairwise(seconds), itertools.pairwise(stamps), strict=True
    ):
        assert 0 <= after - before <= max(second - first, 0) + 1e-5
