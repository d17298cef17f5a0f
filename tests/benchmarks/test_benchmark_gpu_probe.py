"""The comparison with nvidia-smi, on its own format and on faults in it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu_probe import FIELDS, compare

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor, PciLink

DEVICE = DeviceInfo(
    device_id=0,
    kind="gpu",
    index=0,
    vendor=HardwareVendor.NVIDIA,
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-1",
    architecture="9.0",
    memory_bytes=85520809984,
    boost_clock_mhz=1980,
    memory_clock_mhz=2619,
    power_limit_w=700.0,
    power_limit_min_w=200.0,
    power_limit_max_w=700.0,
    pci=PciLink(address="0000:1b:00.0", generation=4, generation_max=5, width=16, width_max=16),
    mig_enabled=None,
    ecc_enabled=True,
    persistence_mode=False,
)
LINE = (
    "NVIDIA H100 80GB HBM3, GPU-1, 81559, 9.0, 00000000:1B:00.0, 5, 16, 1980, 2619, 700.00, 200.00, 700.00, "
    "Enabled, [N/A], Disabled\n"
)


def test_agreement():
    assert [what for what, _, _, same in compare([DEVICE], LINE) if not same] == []
    assert len(list(compare([DEVICE], LINE))) == 1 + len(FIELDS)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"memory_bytes": 85520809984 + (1 << 20)}, "memory.total"),
        ({"power_limit_w": 700.02}, "power.limit"),
        ({"mig_enabled": False}, "mig.mode.current"),
        ({"ecc_enabled": None}, "ecc.mode.current"),
        ({"uuid": None}, "uuid"),
    ],
)
def test_one_wrong_fact_is_found(change, field):
    device = dataclasses.replace(DEVICE, **change)
    assert [what for what, _, _, same in compare([device], LINE) if not same] == [f"gpu:0 {field}"]


def test_a_gpu_too_few():
    assert [what for what, _, _, same in compare([], LINE) if not same] == ["number of GPUs"]


def test_without_nvidia_smi(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_probe"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks.gpu_probe: error: nvidia-smi: ")
