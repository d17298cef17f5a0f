"""Timing on a clock that the calls themselves move forward."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from kernel_pytorch.advice.analysis.calls import CALLS, time_calls
from kernel_pytorch.advice.sample import Sample


class Clock:
    def __init__(self, durations: Iterator[float]) -> None:
        self.now, self.durations, self.calls = 0.0, durations, 0
        self.inputs: list[torch.Tensor] = []

    def __call__(self) -> float:
        return self.now

    def run(self, sample: Sample) -> None:
        self.now += next(self.durations)
        self.calls += 1
        self.inputs.append(sample.args[0])


def test_short_calls_are_repeated_until_a_sample_lasts_two_milliseconds():
    clock = Clock(itertools.repeat(0.0003))
    x = torch.zeros(3)
    found = time_calls(clock.run, Sample.of(x), clock=clock)
    assert found.seconds == pytest.approx([0.0003] * CALLS)
    assert clock.calls == 5 + 7 * CALLS
    assert found.call.value == pytest.approx(0.0003)
    assert found.noise.value == pytest.approx(0)
    assert found.noise.why == ""
    assert all(each is not x for each in clock.inputs)


def test_a_slow_model_is_called_less_often():
    clock = Clock(itertools.repeat(10.0))
    found = time_calls(clock.run, Sample.of(torch.zeros(1)), clock=clock)
    assert clock.calls == 3
    assert found.noise.why == "of 2 calls"
    clock = Clock(itertools.repeat(0.5))
    found = time_calls(clock.run, Sample.of(torch.zeros(1)), clock=clock)
    assert clock.now <= 5
    assert len(found.seconds) % 2 == 0


def test_single_disturbed_calls_make_no_noise():
    """Every fifth sample takes ten times as long."""
    clock = Clock(0.1 if number % 5 == 0 else 0.01 for number in itertools.count())
    found = time_calls(clock.run, Sample.of(torch.zeros(1)), clock=clock)
    assert found.noise.value == pytest.approx(0)
    assert found.call.value == pytest.approx(0.01)


def test_a_difference_between_odd_and_even_calls_is_noise():
    clock = Clock(0.02 if number % 2 else 0.025 for number in itertools.count())
    found = time_calls(clock.run, Sample.of(torch.zeros(1)), clock=clock)
    assert found.noise.value in (pytest.approx(0.25), pytest.approx(0.2))
