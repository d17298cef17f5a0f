"""``probe --record`` and ``--replay``: a real recording, and one with faults in it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import msgspec

from kernel_pytorch.cli import main
from kernel_pytorch.cli.trace import ReplayReport
from kernel_pytorch.machine.trace import read_trace


def test_a_recording_of_this_machine(tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    assert main(["probe", "--record", str(path), "--seconds", "0.3", "--interval", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    snapshots = list(read_trace(path))
    assert f"{path}: {len(snapshots)} readings of " in out
    assert len(snapshots) >= 2
    assert all(snapshot.host is not None for snapshot in snapshots)
    assert main(["probe", "--replay", str(path), "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ReplayReport)
    assert report.readings == len(snapshots)
    assert "disk:/" in report.components
    assert main(["probe", "--record", str(path)]) == 2
    assert "exists; --record does not write over it" in capsys.readouterr().err
    assert list(read_trace(path)) == snapshots


def test_ctrl_c_keeps_what_was_read(tmp_path):
    path = tmp_path / "trace.jsonl"
    command = [sys.executable, "-m", "kernel_pytorch.cli", "probe", "--record", str(path), "--seconds", "600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == f"recording into {path} for 600 s; Ctrl-C ends it\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "readings of" in out
    assert err == "interrupted: what was read so far is kept\n"
    assert f"{len(list(read_trace(path)))} readings" in out


def test_a_trace_with_faults(faulty, capsys):
    assert main(["probe", "--replay", str(faulty), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    states = {name: health["state"] for name, health in report["components"].items()}
    assert {name for name, state in states.items() if state not in ("healthy", None)} == {
        "gpu:3",
        "gpu:5",
        "nic:ib0",
    }
    assert (states["gpu:3"], states["gpu:5"], states["nic:ib0"]) == ("degraded", "failed", "failed")
    found = {finding["component"]: finding["at_s"] for finding in report["findings"]}
    assert 30 < found["gpu:3"] <= 61
    assert found["gpu:5"] == 60
    assert 90 <= found["nic:ib0"] <= 96
    assert main(["probe", "--replay", str(faulty)]) == 0
    out = capsys.readouterr().out
    assert "gpu:5        failed" in out
    assert "120 readings in 119 s; at the end" in out


def test_a_recording_that_was_cut_off(faulty, capsys):
    faulty.write_bytes(faulty.read_bytes()[:-10])
    assert main(["probe", "--replay", str(faulty)]) == 0
    assert "119 readings in 118 s, cut off at the end" in capsys.readouterr().out


def test_what_is_not_a_trace(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text("hello\n")
    assert main(["probe", "--replay", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"{path} is not a trace" in err
