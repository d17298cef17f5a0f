"""The comparison with nvidia-smi, on its own format and on faults in it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.gpu_probe import FIELDS, compare, main
from fake_nvml import FakeNvml, h100

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
        ({"power_limit_min_w": 700.0}, "power.min_limit"),
        ({"power_limit_max_w": None}, "power.max_limit"),
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


@pytest.mark.parametrize(
    ("uuid", "status"), [("GPU-00000000-0000-0000-0000-000000000000", 0), ("GPU-2", 1)], ids=["same", "other"]
)
def test_against_a_program_in_its_place(tmp_path, monkeypatch, capsys, uuid, status):
    """Which prints what nvidia-smi prints of an H100 like the driver's; asked for our fields in our order."""
    nvml = FakeNvml(monkeypatch, [h100()])
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)  # an Intel GPU beside it is left out
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.xpu, "get_device_properties", lambda index: SimpleNamespace(name="Arc", total_memory=1000)
    )
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda index: (400, 1000))
    program = tmp_path / "nvidia-smi"
    line = LINE.replace("GPU-1", uuid).replace("[N/A], Disabled", "Disabled, Enabled").strip()
    program.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/asked\necho '{line}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main() == status
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + len(FIELDS)
    assert [row for row in out if not row.startswith("ok")] == (
        [f"WRONG  gpu:0 uuid: GPU-00000000-0000-0000-0000-000000000000, nvidia-smi {uuid}"] if status else []
    )
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["--query-gpu=" + ",".join(FIELDS), "--format=csv,noheader,nounits"]
    assert nvml.shut_down == 1


def test_a_gpu_too_many():
    assert [what for what, _, _, same in compare([DEVICE], LINE * 2) if not same] == ["number of GPUs"]


PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
if [[ "$*" == *"--record"* ]]; then [ ! -e "$5" ] || exit 2; echo >"$5"; fi
if [[ "$*" == *"--replay"* ]]; then [ -s "$5" ]; fi
"""


def test_the_script_records_into_a_new_file_and_leaves_none(tmp_path):
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    environment = {"PYTHON": str(python), "LOG": str(log), "TMPDIR": str(tmp_path / "tmp")}
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_probe.sh"
    subprocess.run(["bash", script], env={**os.environ, **environment}, check=True)
    assert [line.split()[2:4] for line in log.read_text().splitlines()] == [
        ["probe", "--measure"],
        ["probe", "--record"],
        ["probe", "--replay"],
        [],
    ]
    assert list((tmp_path / "tmp").iterdir()) == []
