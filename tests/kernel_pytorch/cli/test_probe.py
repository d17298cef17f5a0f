"""``kernel-pytorch probe`` as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

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

ROOT = Path(__file__).parents[3]


def probe(*arguments: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "kernel_pytorch.cli", "probe", *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(command, env=environment, capture_output=True, encoding=encoding)


def test_the_schema(capsys):
    """A change of it is a change of what scripts read: add fields freely, else count ``version`` up."""
    assert main(["probe", "--schema"]) == 0
    schema = msgspec.json.schema(ProbeReport)
    assert json.loads(capsys.readouterr().out) == json.loads(msgspec.json.encode(schema)), (
        "write cli/probe/probe.schema.json anew: "
        'python -c "import msgspec; from kernel_pytorch.cli.probe.report import ProbeReport as P; '
        'print(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(P)), indent=1).decode())"'
    )


def test_the_wheel_holds_the_schema_and_all_modules(tmp_path):
    """Built from a copy: setuptools leaves its files in the sources."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, copy)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(tmp_path))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = (ROOT / "src").rglob("*.py")
    assert {str(path.relative_to(ROOT / "src")) for path in sources} <= held
    script = "from kernel_pytorch.cli import __file__, main; main(['probe', '--schema']); print(__file__)"
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    *schema, imported = done.stdout.splitlines()
    assert imported.startswith(str(wheel))
    assert json.loads("".join(schema))["$defs"]["ProbeReport"]


def test_json_of_this_machine():
    done = probe("--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    jsonschema.validate(found, json.loads(probe("--schema").stdout))
    assert (found["format"], found["version"]) == ("kernel-pytorch probe", 2)
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


@pytest.mark.parametrize("root", ["/", "/nowhere"], ids=["this machine", "one without packages"])
def test_it_starts_no_process(root):
    script = """
import os, sys
from kernel_pytorch.cli import main, probe
from kernel_pytorch.machine.live import Machine
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn"):
        os._exit(99)
sys.addaudithook(watch)
probe.Machine = lambda **options: Machine(sys.argv[1], **options)
sys.exit(main(["probe"]))
"""
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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
        (("--json", "--schema"), "--json goes with the tree, --measure and --replay only"),
        (("--measure", "--schema"), "--measure goes with the tree and with --json only"),
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


@pytest.mark.parametrize(
    ("encoding", "branches"),
    [("ascii", "|- "), ("latin-1", "|- "), ("utf-8", "├─ ")],
)
def test_the_tree_in_what_the_terminal_can_show(encoding, branches):
    done = probe(encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == branches + "CPUs"


def test_ctrl_c_before_there_is_anything(capsys, monkeypatch):
    def interrupted(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("kernel_pytorch.cli.probe.Machine", interrupted)
    assert main(["probe"]) == 130
    assert capsys.readouterr() == ("", "kernel-pytorch probe: interrupted\n")


def test_help_is_no_mistake(capsys):
    assert main(["probe", "--help"]) == 0
    assert "examples:" in capsys.readouterr().out


def test_the_drivers_are_closed(capsys, monkeypatch, tmp_path):
    nvml = FakeNvml(monkeypatch, [h100()])
    assert main(["probe", "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ProbeReport)
    assert [device.name for device in report.node.devices] == ["NVIDIA H100 80GB HBM3"]
    assert nvml.shut_down == 1
    assert main(["probe", "--plot", str(tmp_path / "x.gif")]) == 2
    assert nvml.shut_down == 2


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
