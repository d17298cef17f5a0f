"""The GPUs of a node's ranks, and its health: asked for in a process that may hang."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from topologies import dgx_h100_node, node

from kernel_pytorch.jobs.node import devices, health
from kernel_pytorch.jobs.node.devices import devices_for_ranks
from kernel_pytorch.jobs.node.processes import answer_of
from kernel_pytorch.machine.facts import NodeTopology
from kernel_pytorch.machine.readings import DeviceReading, HostReading, Snapshot


class FakeMachine:
    """A machine whose GPUs, but for the first, are at 40 degrees."""

    node: NodeTopology = dgx_h100_node()
    closed = False

    def __init__(self, *, load_torch: bool) -> None:
        assert not load_torch

    def read(self) -> Snapshot:
        readings = {
            device.device_id: DeviceReading(temperature_c=40.0, xids={79: 1} if device.device_id == 0 else {})
            for device in self.node.devices
        }
        return Snapshot(time_s=1.0, devices=readings, host=HostReading())

    def close(self) -> None:
        type(self).closed = True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[FakeMachine]:
    monkeypatch.setattr("kernel_pytorch.machine.live.Machine", FakeMachine)
    monkeypatch.setattr(FakeMachine, "closed", False)
    return FakeMachine


@pytest.mark.parametrize("numactl", [True, False])
def test_a_broken_gpu_is_left_out(machine, monkeypatch, capsys: pytest.CaptureFixture[str], numactl: bool):
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/usr/bin/numactl" if numactl else None)
    devices.main(7)
    chosen = devices.Devices(**json.loads(capsys.readouterr().out))
    assert chosen.environment["CUDA_VISIBLE_DEVICES"] == "1,2,3,4,5,6,7"
    assert chosen.numa_binding == ("node" if numactl else None)
    assert ("CPUs next to its GPU" if numactl else "numactl is not installed") in chosen.note
    assert "; without gpu:0: " in chosen.note
    assert "gpu:1" not in chosen.note
    assert machine.closed


def test_more_ranks_than_gpus(machine):
    with pytest.raises(SystemExit, match="8"):
        devices.main(9)


def test_no_gpu(machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(machine, "node", node([]))
    devices.main(2)
    assert json.loads(capsys.readouterr().out) == {"note": "there is no GPU"}


def test_what_is_broken_is_named(machine, capsys: pytest.CaptureFixture[str]):
    health.main()
    line = capsys.readouterr().out
    assert line.startswith("gpu:0 failed: ")
    assert "79" in line
    assert "gpu:1" not in line
    assert machine.closed


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exec sleep 60", "no answer for 0.3 s"),
        ("echo first >&2; echo last >&2; exit 1", "last"),
        ("exit 3", "exit code 3"),
        ("kill -11 $$", "exit code -11"),
        ("echo '{'", "Expecting property name"),
    ],
)
def test_devices_that_cannot_be_asked_for_are_a_note(tmp_path: Path, text: str, why: str):
    chosen = devices_for_ranks(program(tmp_path, text), 2, within_s=0.3 if "sleep" in text else 60)
    assert (chosen.environment, chosen.numa_binding) == ({}, None)
    assert why in chosen.note
    assert len(chosen.note.splitlines()) == 1


def test_health_that_cannot_be_asked_for_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for text, line in (
        ("exec sleep 60", None),
        ("echo gpu:0 failed; exit 1", None),
        ("echo", None),
        ("echo 'gpu:0  failed:'; echo lost", "gpu:0 failed: lost"),
    ):
        monkeypatch.setattr(sys, "executable", program(tmp_path, text))
        assert health.evidence(within_s=0.3 if "sleep" in text else 60) == line


def test_this_node_answers():
    line = health.evidence(60)
    assert line is None or (len(line.splitlines()) == 1 and len(line) <= 300)
    assert devices_for_ranks(sys.executable, 1, 60).note


def test_a_program_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        answer_of(["/no/program"], 1)
