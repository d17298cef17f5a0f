"""Vendors' figures and measured ones."""

from __future__ import annotations

import pytest
import torch

from kernel_pytorch.machine import measure
from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor
from kernel_pytorch.machine.peaks import peaks_of

CPU = DeviceInfo(device_id=0, kind="cpu", index=0, vendor=HardwareVendor.UNKNOWN, name="CPU")


def test_a_die_of_an_mi250x_is_about_as_fast_as_an_mi210():
    """It has 110 compute units at the same clock, an MI210 104; a driver shows each of the two dies."""
    die, whole = peaks_of("AMD Instinct MI250X"), peaks_of("AMD Instinct MI210")
    assert die is not None
    assert whole is not None
    assert die.memory_gb_s == whole.memory_gb_s == 1638.4
    for dtype, flops in die.flops.items():
        assert flops / whole.flops[dtype] == pytest.approx(110 / 104, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "memory_tb_s", "dense_bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35, 1979 / 2),
        ("NVIDIA H200", 4.8, 1979 / 2),
        ("NVIDIA H100 PCIe", 2.0, 1513 / 2),
        ("NVIDIA A100-SXM4-80GB", 2.039, 312),
        ("NVIDIA L40S", 0.864, 362),
        ("AMD Instinct MI300X", 5.3, 1307.4),
    ],
)
def test_figures_of_the_data_sheets(name, memory_tb_s, dense_bfloat16):
    peaks = peaks_of(name)
    assert peaks is not None
    assert peaks.memory_gb_s == pytest.approx(1000 * memory_tb_s)
    assert peaks.flops["bfloat16"] == pytest.approx(dense_bfloat16 * 1e12)
    assert peaks.flops["bfloat16"] == pytest.approx(2 * peaks.flops["tf32"], rel=0.02)


def test_a_model_that_is_not_listed():
    assert peaks_of("NVIDIA Tomorrow") is None


def test_too_little_memory_to_measure(monkeypatch):
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("tried to allocate 256.00 MiB")

    monkeypatch.setattr(measure, "_largest_size", full)
    with pytest.raises(ValueError, match="cpu:0: too little free memory to measure: tried to allocate 256"):
        measure.measure_peaks(CPU)
