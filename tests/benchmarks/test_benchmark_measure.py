import time
from itertools import product

import numpy as np
import pytest
import torch

from kernel_pytorch.advice.analysis.memory import peak_memory
from kernel_pytorch.advice.prove.timing import interleave, median_ratio

CPU = torch.device("cpu")
MIB = 2**20


def allocate(mib):
    return torch.empty(mib * MIB, dtype=torch.uint8)


def test_interval_matches_all_possible_resamples():
    first = np.array([1.3, 0.9, 1.1, 1.7, 1.25, 1.02])
    second = np.array([1.0, 0.8, 1.2, 0.95, 1.4, 1.13])
    index = np.array(list(product(range(6), repeat=6)))
    exact = np.median(first[index], axis=1) / np.median(second[index], axis=1)
    ratio = median_ratio(first, second)
    assert np.quantile(exact, 0.02) <= ratio.low <= np.quantile(exact, 0.03)
    assert np.quantile(exact, 0.97) <= ratio.high <= np.quantile(exact, 0.98)
    assert ratio.low < ratio.value < ratio.high


def test_value_is_the_ratio_of_medians_and_not_the_median_of_ratios():
    ratio = median_ratio([1.0, 2.0, 9.0], [4.0, 1.0, 5.0])
    assert (ratio.first_s, ratio.second_s, ratio.value, ratio.pairs) == (2.0, 4.0, 0.5, 3)


def test_noise_that_hits_both_calls_of_a_pair_does_not_widen_the_interval():
    second = np.random.default_rng(1).lognormal(sigma=1.0, size=21)
    ratio = median_ratio(1.1 * second, second)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.1, 1.1, 1.1), rel=1e-12)


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(40):
        first, second = generator.lognormal(sigma=0.1, size=(2, 21))
        ratio = median_ratio(1.2 * first, second)
        covered += ratio.low <= 1.2 <= ratio.high
    assert 35 <= covered <= 39


def test_interval_is_reproducible():
    first, second = np.random.default_rng(3).lognormal(size=(2, 21))
    assert median_ratio(first, second) == median_ratio(first, second)


def test_calls_interleave_with_alternating_order_after_one_warm_up_each():
    calls = []
    first, second = interleave(
        lambda: calls.append("a"), lambda: calls.append("b"), pairs=5, max_seconds=60, device=CPU
    )
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba" + "ab"
    assert len(first) == len(second) == 5


def test_times_belong_to_the_call_that_took_them(monkeypatch):
    now = 0.0

    def work(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    first, second = interleave(lambda: work(2), lambda: work(1), pairs=4, max_seconds=60, device=CPU)
    assert (first, second) == ([2.0] * 4, [1.0] * 4)


@pytest.mark.parametrize(("pairs", "measured"), [(2, 2), (3, 3), (1000, 3)])
def test_the_time_limit_leaves_at_least_three_pairs(pairs, measured):
    first, second = interleave(lambda: None, lambda: None, pairs=pairs, max_seconds=0, device=CPU)
    assert len(first) == len(second) == measured


def test_peak_counts_what_is_held_at_once():
    def run():
        a = allocate(4)
        b = allocate(8)  # 12 held: the peak
        del a
        c = allocate(3)  # 11 held
        del b
        return c, allocate(5)  # 8 held

    assert peak_memory(run, CPU) == 12 * MIB


def test_peak_includes_the_result_and_not_what_was_there_before():
    before = allocate(64)
    assert peak_memory(lambda: (allocate(2), allocate(1)), CPU) == 3 * MIB
    assert peak_memory(before.zero_, CPU) == 0


def test_peak_sees_intermediates_that_are_released_before_the_end():
    x = torch.ones(MIB // 4, dtype=torch.float32)
    assert peak_memory(lambda: x.sin().cos().sin(), CPU) == 2 * MIB


def test_peak_of_a_backward_counts_gradients_and_scratch():
    x = torch.ones(MIB // 4, dtype=torch.float32, requires_grad=True)
    y = x.exp()  # saves its result; the backward is one product of 1 MiB
    grad = torch.ones_like(y)
    assert peak_memory(lambda: torch.autograd.grad(y, x, grad, retain_graph=True), CPU) == MIB
