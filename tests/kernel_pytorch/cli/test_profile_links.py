"""``kernel-pytorch profile links`` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import jsonschema
import msgspec
import pytest

from kernel_pytorch.cli import main
from kernel_pytorch.cli.profile.report import LinksReport, report_lines, report_of
from kernel_pytorch.links.facts import Figure, HostLink, MeasuredLinks, RankPair, SharedLink

PROFILE = [sys.executable, "-m", "kernel_pytorch.cli", "profile", "links"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what is killed leaves its file here
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else torchrun says that it sets it
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_the_schema(capsys):
    """A change of it is a change of what scripts read: add fields freely, else count ``version`` up."""
    assert main(["profile", "links", "--schema"]) == 0
    schema = msgspec.json.schema(LinksReport)
    assert json.loads(capsys.readouterr().out) == json.loads(msgspec.json.encode(schema)), (
        "write cli/profile/links.schema.json anew: "
        'python -c "import msgspec; from kernel_pytorch.cli.profile.report import LinksReport as P; '
        'print(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(P)), indent=1).decode())"'
    )


def test_help(capsys):
    assert main(["profile", "--help"]) == 0
    assert "links" in capsys.readouterr().out
    assert main(["profile", "links", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--json", "--schema", "--nproc N", "--seconds", "--fresh", "Exit status:"):
        assert option in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no process group: start this with torchrun --nproc-per-node N -m kernel_pytorch.cli profile "),
        (["--nproc", "1"], "--nproc must be at least 2, got 1"),
        (["--nproc", "2", "--seconds", "0"], "--seconds must be positive, got 0"),
        (["--nproc", "2", "--seconds", "nan"], "--seconds must be positive, got nan"),
        (["--nproc", "two"], "argument --nproc: invalid int value: 'two'"),
        (["--sconds", "2"], "unrecognized arguments: --sconds 2"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, says):
    assert main(["profile", "links", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 1


def test_without_torch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["profile", "links", "--nproc", "2"]) == 2
    line = "kernel-pytorch profile: error: profile needs torch (pip install torch)\n"
    assert capsys.readouterr() == ("", line)
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert main(["profile", "links"]) == 2
    assert capsys.readouterr() == ("", line)


def test_ranks_of_this_machine():
    command = [*PROFILE, "--nproc", "3", "--seconds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    jsonschema.validate(found, msgspec.json.schema(LinksReport))
    report = msgspec.json.decode(done.stdout, type=LinksReport)
    assert (report.links.hosts, report.links.basis) == (((0, 1, 2),), "measured")
    assert report.ring.ranks == (0, 1, 2)
    assert report.all_reduce.in_order_s == report.all_reduce.by_number_s > 0


def test_ranks_of_torchrun():
    done = subprocess.run(
        [*TORCHRUN, "kernel_pytorch.cli", "profile", "links", "--seconds", "1"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    hosts, inside, *_ = done.stdout.splitlines()
    assert hosts.split()[2:] == ["ranks", "0", "1", "by", "boot", "id", "and", "network", "namespace"]
    assert " Gbit/s  round trip " in inside


def test_a_mistake_of_all_ranks_is_told_once():
    done = subprocess.run(
        [*TORCHRUN, "kernel_pytorch.cli", "profile", "links", "--seconds", "-1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1  # torchrun's
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("kernel-pytorch")]
    assert lines == ["kernel-pytorch profile: error: --seconds must be positive, got -1"]


def ranks_of(pid: int) -> list[int]:
    """Ranks that a process has started and that have met, by rank."""
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    ranks = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [rank for rank in ranks if sockets(rank) > 1]


def sockets(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        return sum(os.readlink(f"{folder}/{number}").startswith("socket:") for number in os.listdir(folder))
    return 0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "to_rank", "status", "says"),
    [
        (signal.SIGINT, None, 130, "kernel-pytorch profile: interrupted\n"),
        (signal.SIGKILL, None, -9, ""),
        (signal.SIGKILL, 1, 1, "kernel-pytorch profile: error: "),
    ],
    ids=["Ctrl-C", "killed", "a rank killed"],
)
def test_no_rank_is_left(number, to_rank, status, says):
    command = [*PROFILE, "--nproc", "2", "--seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(ranks_of(process.pid)) == 2)
        ranks = ranks_of(process.pid)
        os.kill(process.pid if to_rank is None else ranks[to_rank], number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (status, "")
    assert err.startswith(says)
    assert len(err.splitlines()) == (1 if says else 0)
    until(lambda: not any(Path("/proc", str(rank)).exists() for rank in ranks))


def example(hosts=((0, 2), (1, 3))) -> MeasuredLinks:
    rate = Figure(value=0.192, low=0.188, high=0.195, samples=7)
    inside = Figure(value=16.94, low=15.0, high=18.0, samples=7)
    cpu = Figure(value=20.0, low=18.0, high=22.0, samples=9)
    trip = Figure(value=300.0, low=290.0, high=310.0, samples=9)
    return MeasuredLinks(
        hosts=hosts,
        basis="measured",
        links=(
            HostLink(source=0, target=1, gbit_s=rate, message_us=cpu, byte_ns=replace(cpu, value=0.25)),
            HostLink(source=0, target=0, gbit_s=inside, message_us=cpu),
            HostLink(source=1, target=0, gbit_s=rate),
            HostLink(source=1, target=1, gbit_s=inside),
        ),
        pairs=tuple(RankPair(a=a, b=b, round_trip_us=trip) for a, b in combinations(range(4), 2)),
        shared=(SharedLink(source=0, targets=(1, 1), share=replace(rate, value=0.5, low=0.49, high=0.51)),),
        names=("a", "b"),
        seconds=2.94,
    )


def test_the_report():
    *rows, order, basis = report_lines(report_of(example()))
    assert rows == [
        "  hosts     a: ranks 0 2    b: ranks 1 3    by boot id and network namespace",
        "  a -> b    0.192 (0.188 to 0.195) Gbit/s  round trip 0.3 ms  "
        "CPU 20 us a message and 0.25 ns a byte",
        "  inside a  16.9 (15 to 18) Gbit/s  round trip 0.3 ms  CPU 20 us a message",
        "  b -> a    0.192 (0.188 to 0.195) Gbit/s  round trip 0.3 ms",
        "  inside b  16.9 (15 to 18) Gbit/s  round trip 0.3 ms",
        "  a -> b    two pairs of ranks at once: each has 0.5 (0.49 to 0.51) of its rate alone",
    ]
    assert basis == "  basis     measured now, one pair of hosts at a time, in 2.9 s"
    numbers = re.fullmatch(
        r"  order     0 2 1 3 sends 50% as many bytes between hosts as 0 1 2 3 in a ring; "
        r"all_reduce of 16 MB: (\d+) ms instead of (\d+) ms expected",
        order,
    )
    # Each place sends the next 1.5 times 16 MB, one or two of them out of each host, in 6 steps.
    hop_ms = 1.5 * (16 << 20) * 8 / 0.192e9 * 1e3
    times = [hop_ms + 6 * 0.3, 2 * hop_ms + 6 * 0.3]
    assert [float(number) for number in numbers.groups()] == pytest.approx(times, rel=0.02)


def test_the_report_of_other_links():
    links = replace(example(((0, 1), (2, 3))), basis="saved", links=())
    rows = dict(line.split(maxsplit=1) for line in report_lines(report_of(links)))
    assert rows["order"] == "0 1 2 3: no other order sends less between hosts in a ring"
    assert rows["basis"] == "saved by an earlier run; a quick round agrees (--fresh measures anew)"
