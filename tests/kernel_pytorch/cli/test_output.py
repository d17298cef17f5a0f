"""``kernel-pytorch probe`` where its output cannot show everything, or cannot be written at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sysfs_trees import write, write_host

from kernel_pytorch.watch.trace import read_trace

# On a host of another name, whose files are below a folder.
ELSEWHERE = """
import os, socket, sys
from kernel_pytorch.cli import main, probe
from kernel_pytorch.machine.live import Machine
socket.gethostname = lambda: sys.argv[1]
probe.Machine = lambda **options: Machine(sys.argv[2], mounts=(), **options)
sys.exit(main(sys.argv[3:]))
"""
PROBE = [sys.executable, "-W", "error", "-m", "kernel_pytorch.cli", "probe"]
MODES = {
    "tree": (),
    "json": ("--json",),
    "record": ("--record", "new.jsonl", "--seconds", "0.01"),
    "replay": ("--replay", "faulty.jsonl"),
    "replay-json": ("--replay", "faulty.jsonl", "--json"),
    "serve": ("--serve", "127.0.0.1:0"),
    "schema": ("--schema",),
    "help": ("--help",),
}
every_mode = pytest.mark.parametrize("arguments", MODES.values(), ids=MODES)


@pytest.fixture
def odd_host(tmp_path) -> Path:
    """A disk and a network interface whose names are no UTF-8."""
    root = tmp_path / "root"
    write_host(root, packages=[[[0]]], numa=[[0]])
    write(root, "sys/block/sda/size", 1953525168)
    write(root, "sys/block/sda/queue/rotational", 0)
    write(root, "sys/block/sda/device/model", "")
    (root / "sys/block/sda/device/model").write_bytes(b"DISK \xc0\n")
    folder = os.fsencode(root / "sys/class/net") + b"/eth\xc0"
    os.makedirs(folder)
    for name, text in ((b"type", b"1"), (b"operstate", b"up"), (b"carrier", b"1")):
        with open(folder + b"/" + name, "wb") as file:
            file.write(text)
    return root


def elsewhere(host: bytes, root: Path, *arguments: str, encoding: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", ELSEWHERE, host, str(root), "probe", *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROBE, *arguments], text=True, **options)


@pytest.mark.parametrize(
    ("encoding", "host", "shown"),
    [
        ("ascii", "knoten-ä".encode(), "knoten-?"),
        ("ascii", b"knoten-\xe4", "knoten-?"),
        ("latin-1", "knoten-ä".encode(), "knoten-ä"),
        ("utf-8", "knoten-ä".encode(), "knoten-ä"),
        ("utf-8", b"knoten-\xe4", "knoten-\ufffd"),
    ],
)
def test_the_tree_shows_what_the_terminal_can(odd_host, encoding, host, shown):
    done = elsewhere(host, odd_host, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    odd = "\ufffd" if encoding == "utf-8" else "?"
    lines = done.stdout.decode(encoding).splitlines()
    assert lines[0].startswith(f"{shown}  may use ")
    assert any(line.endswith(f"sda  ssd, 1000.2 GB, DISK {odd}") for line in lines)
    assert any(f"eth{odd}  virtual, up" in line for line in lines)


@pytest.mark.parametrize("host", ["knoten-ä".encode(), b"knoten-\xe4"], ids=["utf-8", "latin-1"])
def test_json_and_recordings_have_what_the_terminal_cannot_show(odd_host, tmp_path, host):
    name = host.decode(errors="replace")
    done = elsewhere(host, odd_host, "--json", encoding="ascii")
    assert (done.returncode, done.stderr, done.stdout.isascii()) == (0, b"", True)
    node = json.loads(done.stdout)["node"]
    assert (node["hostname"], node["storage"][0]["model"]) == (name, "DISK \ufffd")
    path = tmp_path / "spur-ä.jsonl"
    done = elsewhere(host, odd_host, "--record", str(path), "--seconds", "0.01", encoding="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(f"recording into {tmp_path}/spur-?.jsonl for ".encode())
    reader = read_trace(path)
    assert reader.topology.nodes[0].hostname == name
    assert [list(snapshot.host.nics) for snapshot in reader][:1] == [["eth\ufffd"]]
    done = elsewhere(host, odd_host, "--replay", str(path), encoding="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"  nic:eth?     healthy" in done.stdout
    done = elsewhere(host, odd_host, "--replay", str(path), "--json", encoding="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "nic:eth\ufffd" in json.loads(done.stdout)["components"]


def test_a_host_of_an_odd_name_is_served(odd_host):
    command = [sys.executable, "-c", ELSEWHERE, b"knoten-\xe4", str(odd_host), "probe", *MODES["serve"]]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    scrape = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())"
    try:
        url = process.stdout.readline().decode().strip()
        text = subprocess.run([sys.executable, "-c", scrape, url], capture_output=True, check=True).stdout
        assert 'kernel_pytorch_interface_carrier{interface="eth\ufffd"} 1.0' in text.decode()
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_an_error_shows_what_the_terminal_can(odd_host):
    for name in (b"spur-\xc0", "spur-ä".encode()):
        done = elsewhere(b"host", odd_host, "--replay", name, encoding="ascii")
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr == b"kernel-pytorch probe: error: spur-?: No such file or directory\n"


@every_mode
def test_a_closed_output_is_one_line(faulty, arguments):
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *PROBE, *arguments]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, cwd=faulty.parent)
    assert (done.returncode, done.stderr) == (2, "kernel-pytorch probe: error: standard output is closed\n")
    assert not (faulty.parent / "new.jsonl").exists()


@every_mode
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_a_full_disk_is_one_line(faulty, buffered, arguments):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with open("/dev/full", "wb") as full:
        done = run(*arguments, env=environment, stdout=full, stderr=subprocess.PIPE, cwd=faulty.parent)
    assert (done.returncode, done.stderr) == (
        2,
        "kernel-pytorch probe: error: [Errno 28] No space left on device\n",
    )


@every_mode
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_a_reader_that_went_away_is_told_nothing(faulty, buffered, arguments):
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*arguments, env=environment, stdout=writer, stderr=subprocess.PIPE, cwd=faulty.parent)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [(("--json",), 0, True), (("--replay", "nothing"), 2, False), (("--nonsense",), 2, False)],
    ids=["done", "mistake", "usage"],
)
def test_errors_that_cannot_be_written_leave_the_output_alone(tmp_path, redirection, arguments, status, says):
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *PROBE, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == status
    assert bool(done.stdout) is says
    if says:
        json.loads(done.stdout)
