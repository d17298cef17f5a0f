from __future__ import annotations

import pytest
import torch

from kernel_pytorch.advice.analysis import roofline as module
from kernel_pytorch.advice.analysis.roofline import bound, roofline
from kernel_pytorch.advice.facts import Roofline
from kernel_pytorch.machine.measure import Rates

CPU = torch.device("cpu")
PEAKS = Roofline(
    flops={"float32": 2e9, "bfloat16": 8e9}, memory_gb_s=1.0, unmeasured={"float64": "not asked for"}
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is measured, by a stand-in."""
    found: list[tuple[str, ...]] = []

    def measure(device, dtypes, **options) -> Rates:
        found.append(dtypes)
        if "float16" in dtypes:
            raise torch.OutOfMemoryError("no\nroom")
        return Rates(
            flops=dict.fromkeys(dtypes, 1000000000.0),
            matrix_sizes={},
            memory_gb_s=2.0,
            copy_bytes=1,
            unmeasured={},
        )

    monkeypatch.setattr(module, "measure_rates", measure)
    monkeypatch.setattr(module, "_measured", {})
    return found


def test_measured_once_for_each_number_of_threads(asked: list[tuple[str, ...]]):
    assert roofline(CPU) == roofline(CPU, ["float32"])
    assert asked == [("float32", "bfloat16")]
    assert roofline(CPU, ["float64", "int8"]).flops["float64"] == 1e9
    assert asked[1:] == [("float32", "bfloat16", "float64")]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        roofline(CPU)
    finally:
        torch.set_num_threads(threads)
    assert len(asked) == 3


def test_measured_again_the_higher_counts(monkeypatch: pytest.MonkeyPatch):
    found = iter([(3e9, None, {"copy": "slow"}), (1e9, 5.0, {})])

    def measure(device, dtypes, **options) -> Rates:
        flops, copied, unmeasured = next(found)
        return Rates(
            flops={"float32": flops},
            matrix_sizes={},
            memory_gb_s=copied,
            copy_bytes=1,
            unmeasured={"bfloat16": "slow", **unmeasured},
        )

    monkeypatch.setattr(module, "measure_rates", measure)
    monkeypatch.setattr(module, "_measured", {})
    assert roofline(CPU).memory_gb_s is None
    expected = Roofline(flops={"float32": 3e9}, memory_gb_s=5.0, unmeasured={"bfloat16": "slow"})
    assert roofline(CPU, again=True) == expected
    assert roofline(CPU) == expected


def test_too_little_memory_is_a_reason(asked: list[tuple[str, ...]]):
    found = roofline(CPU, ["float16"])
    assert (found.flops, found.memory_gb_s) == ({}, None)
    assert found.unmeasured["copy"] == "too little free memory to measure: no room"


def test_products_at_the_peak_of_each_dtype():
    found = bound(PEAKS, {"float32": 2_000_000_000, "bfloat16": 4_000_000_000}, 10, 0)
    assert found.value == pytest.approx(1.5)
    assert found.why == "by the products"


def test_memory_beyond_the_cache():
    found = bound(PEAKS, {"float32": 2_000_000}, 1_500_000_000, 500_000_000)
    assert found.value == pytest.approx(1.0)
    assert "memory" in found.why


def test_no_bound_without_its_peak():
    assert bound(PEAKS, {"float64": 1}, 10, 0).why == "the peak of float64 products: not asked for"
    assert bound(PEAKS, {"int8": 1}, 10, 0).why == "the peak of int8 products: not measured"
    assert bound(PEAKS, {}, 10, 20).value is None
