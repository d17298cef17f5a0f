"""Measured figures, with a clock that says a second passed in each run."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
import topologies
import torch

from kernel_pytorch.machine.facts import Peaks
from kernel_pytorch.machine.measure import measure_peaks


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, str]]:
    """Dtype and precision of each product; the clock ticks a second whenever it is read."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    seen: list[tuple[torch.dtype, str]] = []
    mm = torch.mm

    def watched(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        assert a.shape == b.shape == (2048, 2048)
        seen.append((a.dtype, torch.get_float32_matmul_precision()))
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    return seen


def test_products_and_copies_of_a_second(products):
    (cpu, *_) = topologies.cpu_only().devices
    cpu = replace(
        cpu, peaks=Peaks(flops={"float32": 2**35, "float64": 1.0}, memory_gb_s=2.147483648, source="")
    )
    torch.set_float32_matmul_precision("medium")
    try:
        found = measure_peaks(cpu)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    # 2048**3 products and as many sums; 512 MiB read and as many written.
    assert found.flops == {"float32": 2**34, "bfloat16": 2**34}
    assert found.memory_gb_s == pytest.approx(1.073741824)
    assert found.flops_share == {"float32": 0.5}
    assert found.memory_share == pytest.approx(0.5)
    assert (found.matrix_size, found.copy_bytes) == (2048, 1 << 29)
    assert found.threads == torch.get_num_threads()
    # One run to warm up, three to measure: then half a second is over.
    assert products == [(torch.float32, "highest")] * 4 + [(torch.bfloat16, "highest")] * 4


def test_runs_go_on_until_the_time_is_over(products):
    (cpu, *_) = topologies.cpu_only().devices
    found = measure_peaks(cpu, seconds=20)
    # The clock ticks twice in a run and, from the fourth on, once more to see whether it is time to end.
    assert len(products) == 2 * (1 + 3 + 5)
    assert (found.flops_share, found.memory_share) == ({}, None)
