"""Measured figures, on a clock that products and copies move forward by a speed that the test chooses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import topologies
import torch

from kernel_pytorch.machine.facts import DeviceInfo, Peaks
from kernel_pytorch.machine.measure import measure_peaks, measure_rates
from kernel_pytorch.machine.measured import MeasuredPeaks

COPY_GB_S = 8.0


class Speeds:
    """torch's products and copies at ``flops`` FLOP/s by dtype, and what they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flops: dict[torch.dtype, float]) -> None:
        self.now, self.flops = 0.0, flops
        self.products: list[tuple[torch.dtype, int, str]] = []
        self.copied: list[int] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "mm", self.mm)
        monkeypatch.setattr(torch.Tensor, "copy_", self.copy_)

    def mm(self, a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        assert a.shape == b.shape == out.shape
        self.now += 2 * len(a) ** 3 / self.flops[a.dtype]
        self.products.append((a.dtype, len(a), torch.get_float32_matmul_precision()))
        return out

    def copy_(self, source: torch.Tensor) -> None:
        self.now += 2 * source.numel() / COPY_GB_S / 1e9
        self.copied.append(source.numel())


def cpu(**facts: object) -> DeviceInfo:
    (first, *_) = topologies.cpu_only().devices
    return replace(first, **facts)


Measure = Callable[..., tuple[MeasuredPeaks, Speeds]]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    def run(float32: float, bfloat16: float, **facts: object) -> tuple[MeasuredPeaks, Speeds]:
        speeds = Speeds(monkeypatch, {torch.float32: float32, torch.bfloat16: bfloat16})
        return measure_peaks(cpu(**facts)), speeds

    return run


def test_a_fast_cpu_is_measured_with_the_largest_products(measure: Measure):
    torch.set_float32_matmul_precision("medium")
    try:
        peaks = Peaks(flops={"float32": 1e12, "float64": 1.0}, memory_gb_s=2 * COPY_GB_S, source="")
        found, speeds = measure(2e11, 8e11, peaks=peaks)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.flops == pytest.approx({"float32": 2e11, "bfloat16": 8e11})
    assert found.matrix_sizes == {"float32": 2048, "bfloat16": 2048}
    assert found.memory_gb_s == pytest.approx(COPY_GB_S)
    assert found.flops_share == {"float32": pytest.approx(0.2)}
    assert found.memory_share == pytest.approx(0.5)
    assert found.copy_bytes == 512 << 20
    assert found.threads == torch.get_num_threads()
    assert found.unmeasured == {}
    assert {precision for _, _, precision in speeds.products} == {"highest"}


def test_a_cpu_without_bfloat16_instructions_costs_about_a_second_a_figure(measure: Measure):
    """An AMD EPYC with AVX2 took 115 s for one product of 2048: 0.15 GFLOP/s."""
    found, speeds = measure(2e11, 0.15e9, memory_bytes=64 << 20)
    assert found.flops["bfloat16"] == pytest.approx(0.15e9)
    assert found.matrix_sizes == {"float32": 2048, "bfloat16": 128}
    assert sum(2 * n**3 / 0.15e9 for dtype, n, _ in speeds.products if dtype == torch.bfloat16) < 1.5


@pytest.mark.parametrize("rate", [1e6, 1e9, 1e11])
def test_no_figure_costs_much_more_than_a_second_at_any_rate(measure: Measure, rate: float):
    found, speeds = measure(rate, rate, memory_bytes=64 << 20)
    for dtype in speeds.flops:
        products = [n for each, n, _ in speeds.products if each is dtype]
        if found.flops:
            assert sum(2 * n**3 / rate for n in products) < 2
        else:
            assert products == [128, 128]


def test_what_cannot_be_measured_says_so(measure: Measure):
    found, _ = measure(2e11, 1e6, memory_bytes=64 << 20)
    assert list(found.flops) == list(found.matrix_sizes) == ["float32"]
    assert found.unmeasured == {"bfloat16": "a run of size 128 takes 4.19 s"}


@pytest.mark.parametrize("rate", [1e9, 1e11])
def test_rates_take_the_seconds_that_they_may(monkeypatch: pytest.MonkeyPatch, rate: float):
    speeds = Speeds(monkeypatch, {torch.float32: rate})
    found = measure_rates(torch.device("cpu"), ["float32"], copy_bytes=[1 << 20], figure_s=0.1)
    assert found.flops == pytest.approx({"float32": rate})
    assert found.copy_bytes == 1 << 20
    assert speeds.now < 0.4


def test_the_fastest_run_may_count(monkeypatch: pytest.MonkeyPatch):
    """Two of three products take twice as long, as others disturb them."""
    speeds = Speeds(monkeypatch, {torch.float32: 1e11})
    product = speeds.mm

    def disturbed(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        if len(speeds.products) % 3:
            speeds.now += 2 * len(a) ** 3 / 1e11
        return product(a, b, out=out)

    monkeypatch.setattr(torch, "mm", disturbed)
    found = [
        measure_rates(torch.device("cpu"), ["float32"], copy_bytes=[8 << 20], **options).flops["float32"]
        for options in ({"summary": min}, {})
    ]
    assert found == pytest.approx([1e11, 0.5e11])


def test_copies_stay_within_an_eighth_of_the_memory(measure: Measure):
    found, speeds = measure(2e11, 2e11, memory_bytes=800 << 20)
    assert found.copy_bytes == max(speeds.copied) == 64 << 20
    found, _ = measure(2e11, 2e11, memory_bytes=8 << 20)
    assert found.copy_bytes == 1 << 20
