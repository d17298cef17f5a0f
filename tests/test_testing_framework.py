"""``pytest tests/test_testing_framework.py::TestPerformanceBenchmarking`` runs the tests of the harness.

Its suites are in ``entry_points.BENCHMARKING``; ``tests/conftest.py`` adds them where the class is named.
"""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from benchmarks.measure import compare, medians
from benchmarks.registry import Options
from entry_points import BENCHMARKING, files_importing, outside

CPU = torch.device("cpu")


class TestPerformanceBenchmarking:
    """What benchmarks measure with, on a clock that the calls themselves move forward."""

    @pytest.fixture
    def call(self, monkeypatch):
        """Make calls that take the listed seconds, over and over, and note their names."""
        now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: now)
        self.calls = ""

        def make(name, *seconds):
            taken = itertools.cycle(seconds)

            def run():
                nonlocal now
                self.calls += name
                now += next(taken)

            return run

        return make

    def test_the_suites_are_all_that_measure_with_it(self):
        files = files_importing(
            "benchmarks.run",
            "benchmarks.report",
            "kernel_pytorch.advice.prove.ratio",
            "kernel_pytorch.advice.prove.timing",
        )
        assert len(files) >= 3
        assert outside(files, BENCHMARKING) == set()

    def test_medians_take_the_calls_in_turns_after_a_warm_up_of_all(self, call):
        calls = {"a": call("a", 9, 1, 5, 2), "b": call("b", 7, 3, 3, 4)}
        assert medians(calls, rounds=3, max_seconds=60, device=CPU) == {"a": 2, "b": 3}
        assert self.calls == "ab" + "ababab"

    @pytest.mark.parametrize(("rounds", "made"), [(2, 2), (1000, 3), (4, 3)])
    def test_medians_stop_at_the_time_limit_after_three_rounds(self, call, rounds, made):
        medians({"a": call("a", 1)}, rounds=rounds, max_seconds=1, device=CPU)
        assert len(self.calls) == 1 + made

    def test_a_ratio_is_per_unit_of_work(self, call):
        options = Options(device=CPU, pairs=5, max_seconds=1000)
        ratio = compare(call("a", 6), call("b", 4), options, work=(3, 1))
        assert (ratio.first_s, ratio.second_s, ratio.pairs) == (2, 4, 5)
        assert (ratio.low, ratio.value, ratio.high) == (0.5, 0.5, 0.5)
