"""``kernel-pytorch probe`` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import topologies
from fake_nvml import FakeNvml, h100

from kernel_pytorch.cli import main
from kernel_pytorch.cli.probe import _measure as measured_of
from kernel_pytorch.cli.probe.plot import draw
from kernel_pytorch.cli.probe.report import ProbeReport
from kernel_pytorch.cli.probe.tree import report_tree, tree_lines
from kernel_pytorch.machine.facts import Missing
from kernel_pytorch.machine.live import Machine
from kernel_pytorch.machine.measured import MeasuredPeaks

SCHEMA = Path(__file__).parents[3] / "docs/probe.schema.json"


def probe(
    *arguments: str, stdout: Any = subprocess.PIPE, buffered: bool = True, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "kernel_pytorch.cli", "probe", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1", "PYTHONIOENCODING": encoding}
    return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, encoding=encoding)


def test_the_schema_in_the_docs():
    """A change of it is a change of what scripts read: add fields freely, else count ``version`` up."""
    schema = msgspec.json.schema(ProbeReport)
    assert json.loads(SCHEMA.read_text()) == json.loads(msgspec.json.encode(schema)), (
        "write docs/probe.schema.json anew: "
        'python -c "import msgspec; from kernel_pytorch.cli.probe.report import ProbeReport as P; '
        'print(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(P)), indent=1).decode())"'
    )


def test_json_of_this_machine():
    done = probe("--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert (found["format"], found["version"]) == ("kernel-pytorch probe", 1)
    report = msgspec.json.decode(done.stdout, type=ProbeReport)
    assert report.node.limits.cpus
    assert report.node.devices
    assert report.measured is None


def test_the_tree_of_this_machine():
    done = probe()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{Machine().node.hostname}  may use ")
    for what in ("CPUs", "network", "storage"):
        assert any(line.endswith(("─ " + what, "- " + what)) for line in lines), what


def test_it_does_not_import_torch():
    script = (
        "import sys; sys.modules['torch'] = None; from kernel_pytorch.cli import main; main(['probe']); "
        "print([m for m in ('matplotlib', 'rich', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("[]\n")


def test_measured():
    done = probe("--measure", "--json")
    assert done.returncode == 0, done.stderr
    measured = msgspec.json.decode(done.stdout, type=ProbeReport).measured
    assert measured
    for found in measured:
        assert found.flops["float32"] > 1e9
        assert found.memory_gb_s > 0.1


def test_packages_are_measured_together_and_hidden_gpus_left_out(capsys, monkeypatch):
    """torch's threads run on all packages; it sees none of the GPUs."""
    (node,) = topologies.cpu_only(2).nodes.values()
    measured, status = measured_of(node)
    assert ([found.device_id for found in measured], status) == ([0], 0)
    capsys.readouterr()
    assert measured_of(topologies.mig().nodes[0]) == ((), 1)  # not done, so no success
    err = capsys.readouterr().err.splitlines()
    assert err[::2] == [f"measuring gpu:{number} ..." for number in range(3)]
    assert all(line.startswith("kernel-pytorch probe: error: torch does not see gpu:") for line in err[1::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds", "5"), "--seconds is for --record"),
        (("--interval", "5"), "--interval is for --record and --serve"),
        (("--record", "x.jsonl", "--seconds", "0"), "--seconds must be positive, got 0"),
        (("--record", "x.jsonl", "--interval", "nan"), "--interval must be positive, got nan"),
        (("--record", "x.jsonl", "--seconds", "inf"), "--seconds must be positive, got inf"),
        (("--json", "--record", "x.jsonl"), "--json goes with the tree, --measure and --replay only"),
        (("--json", "--plot", "x.svg"), "--json goes with the tree, --measure and --replay only"),
        (("--measure", "--plot", "x.svg"), "--measure goes with the tree and with --json only"),
        (("--plot", "x.gif"), "--plot writes .svg, .png, .pdf, got x.gif"),
        (("--plot", "nowhere/x.svg"), "nowhere/x.svg: No such file or directory"),
        (("--replay", "nowhere.jsonl"), "nowhere.jsonl: No such file or directory"),
        (("--record", "nowhere/x.jsonl"), "nowhere/x.jsonl: No such file or directory"),
        (("--replay", "a", "--record", "b"), "argument --record: not allowed with argument --replay"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["probe", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


# In a process of its own whose output goes where it cannot be written: at once, or from a buffer at its end.
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["tree", "json"])
def test_a_reader_that_went_away(buffered, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = probe(*arguments, stdout=writer, buffered=buffered)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_a_full_disk(buffered):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb") as full:
        done = probe(stdout=full, buffered=buffered)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["kernel-pytorch probe: error: [Errno 28] No space left on device"],
    )


@pytest.mark.parametrize(
    ("encoding", "branches"),
    [("ascii", "|- "), ("latin-1", "|- "), ("utf-8", "├─ ")],
)
def test_the_tree_in_what_the_terminal_can_show(encoding, branches):
    done = probe(encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == branches + "CPUs"


def test_ctrl_c_before_there_is_anything(capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.run", interrupted)  # hwloc, which takes longest
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/lstopo")
    assert main(["probe"]) == 130
    assert capsys.readouterr() == ("", "kernel-pytorch probe: interrupted\n")


def test_help_is_no_mistake(capsys):
    assert main(["probe", "--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    assert main([]) == 2


def test_the_drivers_are_closed(capsys, monkeypatch, tmp_path):
    nvml = FakeNvml(monkeypatch, [h100()])
    assert main(["probe", "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ProbeReport)
    assert [device.name for device in report.node.devices] == ["NVIDIA H100 80GB HBM3"]
    assert nvml.shut_down == 1
    assert main(["probe", "--plot", str(tmp_path / "x.gif")]) == 2
    assert nvml.shut_down == 2


def test_an_hwloc_of_another_version_is_told(capsys, monkeypatch, tmp_path):
    program = tmp_path / "lstopo-no-graphics"
    program.write_text("#!/bin/sh\necho \"<topology version='1.11'/>\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main(["probe", "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ProbeReport)
    assert report.hwloc is not None
    assert report.hwloc.differences == ("not the XML of hwloc 2: <topology version='1.11'>",)


def test_the_plot(tmp_path):
    path = tmp_path / "dgx.svg"
    draw(topologies.dgx_h100_node(), path)
    text = "".join(ElementTree.parse(path).getroot().itertext())
    svg = path.read_text()
    for expected in ("gpu:7", "NUMA node 1", "NVLink", "400 Gbit/s"):
        assert expected in text or f"<!-- {expected}" in svg or expected in svg, expected


def test_a_tree_in_full(capsys):
    cluster = topologies.mig()
    measured = MeasuredPeaks(
        device_id=2,
        flops={"bfloat16": 494.7e12},
        memory_gb_s=2000,
        matrix_sizes={"bfloat16": 8192},
        copy_bytes=1 << 31,
        threads=None,
        flops_share={"bfloat16": 0.5},
        memory_share=0.597,
    )
    report = ProbeReport(node=cluster.nodes[0], measured=(measured,))
    text = "\n".join(tree_lines(report_tree(report), ascii_only=True))
    assert text.isascii()
    assert text.count("MIG instance 1g.10gb  10.5 GB") == 7
    assert "bfloat16 495 TFLOP/s (50% of peak), n = 8192; copy 2e+03 GB/s (60% of peak)" in text


def test_what_is_missing_is_said():
    from dataclasses import replace

    note = Missing(what="NVIDIA GPU", why="no driver", fix="install it")
    node = replace(topologies.dgx_h100_node(), missing=(note,))
    lines = list(tree_lines(report_tree(ProbeReport(node=node))))
    assert lines[-2:] == ["└─ not seen", "   └─ NVIDIA GPU: no driver -> install it"]
