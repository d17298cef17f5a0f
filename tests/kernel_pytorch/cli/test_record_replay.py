"""``probe --record`` and ``--replay``: a real recording, and one with faults in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import msgspec
import pytest
import topologies
from processes import WITH_A_DRIVER, first_process

from kernel_pytorch.cli import main
from kernel_pytorch.cli.errors import CommandError
from kernel_pytorch.cli.probe.trace import ReplayReport, record
from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.watch.trace import TraceWriter, read_trace


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


def test_sigterm_to_the_first_process_of_a_container_keeps_what_was_read(tmp_path, monkeypatch):
    """And closes the drivers."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    path = tmp_path / "trace.jsonl"
    command = [sys.executable, "-c", WITH_A_DRIVER, "probe", "--record", str(path), "--seconds", "600"]
    with first_process(command) as (process, child, line):
        assert line == f"recording into {path} for 600 s; Ctrl-C ends it\n"
        os.kill(child, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "terminated: what was read so far is kept\n")
    first, *_, last = out.splitlines()
    assert first.startswith(f"{path}: {len(list(read_trace(path)))} readings of 1 devices in ")
    assert last == "opened 1, closed 1"


def test_what_a_recording_cannot_mean(tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path, topologies.dgx_h100()) as writer:
        for time_s in range(3):
            writer.write(Snapshot(time_s=float(time_s), devices={1: DeviceReading(temperature_c=255.0)}))
    assert main(["probe", "--replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count("unknown: gpu:1: temperature_c: 255.0 is not a possible value\n") == 1
    assert main(["probe", "--replay", str(path), "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ReplayReport)
    assert [note.what for note in report.missing] == ["gpu:1: temperature_c"]
    assert report.components["gpu:1"].evidence == ()


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
    assert "120 readings in 119 s\n" in out
    assert "  gpu:3        60 to 95 C\n" in out


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


@pytest.mark.parametrize("already", [False, True], ids=["while recording", "before"])
def test_a_disk_that_is_full(tmp_path, already):
    """A file system of 64 kB, in a mount namespace of its own. Without a header no file is left."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    fill = "cat /dev/zero > filler 2> /dev/null; " if already else ""
    inside = (
        f'mount -t tmpfs -o size=64k tmpfs "$1" && cd "$1" && shift && {fill}"$@"; code=$?; ls; exit $code'
    )
    record = ("probe", "--record", "trace.jsonl", "--seconds", "600", "--interval", "0.001")
    command = ["unshare", "-m", "sh", "-c", inside, "sh", str(tmp_path)]
    done = subprocess.run(
        [*command, sys.executable, "-m", "kernel_pytorch.cli", *record], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "kernel-pytorch probe: error: trace.jsonl: No space left on device\n"
    assert "readings of" not in done.stdout
    assert done.stdout.splitlines()[-1] == ("filler" if already else "trace.jsonl")


def test_a_recording_without_a_reading(tmp_path, capsys):
    path = tmp_path / "empty.jsonl"
    with TraceWriter(path, topologies.dgx_h100()):
        pass
    assert main(["probe", "--replay", str(path), "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ReplayReport)
    assert (report.readings, report.seconds, report.truncated) == (0, 0, False)
    assert (report.findings, report.components) == ((), {})


def test_findings_are_told_once_and_the_unknown_at_the_end(tmp_path, capsys):
    """Ten readings too hot, each with another text; GPU 1 is not read at all."""
    path = tmp_path / "hot.jsonl"
    with TraceWriter(path, topologies.dgx_h100()) as writer:
        for second in range(100):
            hot = DeviceReading(temperature_c=95 + second % 3, throttle_reasons=())
            writer.write(Snapshot(time_s=5e8 + second, devices={0: hot}))
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["probe", "--replay", str(path), "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ReplayReport)
    assert (report.readings, report.seconds, report.truncated) == (99, 98, True)
    assert [finding.component for finding in report.findings] == ["gpu:0"]
    assert 0 <= report.findings[0].at_s < 98
    assert main(["probe", "--replay", str(path)]) == 0
    assert "  gpu:1        unknown; " in capsys.readouterr().out


class Broken:
    """A machine whose third reading fails."""

    node = topologies.dgx_h100_node()

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Snapshot:
        self.reads += 1
        if self.reads > 2:
            raise OSError("the device went away")
        return Snapshot(time_s=float(self.reads), devices={})


def test_a_reading_that_fails_ends_the_recording(tmp_path):
    path = tmp_path / "trace.jsonl"
    with pytest.raises(CommandError, match=f"{path}: the device went away"):
        record(Broken(), Broken.node, path, 600.0, 0.01)
    assert [snapshot.time_s for snapshot in read_trace(path)] == [1, 2]
