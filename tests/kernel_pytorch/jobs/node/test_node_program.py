"""Node programs of a job on this machine, started by hand and not by its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.local.target import LocalTarget
from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.read import spec_of

PROGRAM = ["-m", "kernel_pytorch.jobs.node"]
BROKEN = ["-c", "import sys, kernel_pytorch.jobs.node.__main__ as m; m.Member = None; m.main(sys.argv[1:])"]
Start = Callable[..., subprocess.Popen[str]]


class Nowhere(LocalTarget):
    """Starts nothing."""

    def submit(self, spec, folders, *, inherit_env):
        return ["1"] * len(folders)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    spec = spec_of({"name": "books", "command": ["sleep", "600"], "nodes": 2})
    (submitted,) = Jobs(tmp_path / "jobs").submit(spec, Nowhere())
    return JobFolder(submitted.folder)


@pytest.fixture
def start(folder: JobFolder) -> Iterator[Start]:
    programs: list[subprocess.Popen[str]] = []

    def begin(index: int, program: list[str] = PROGRAM, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "KERNEL_PYTORCH_NODE": str(index),
            "KERNEL_PYTORCH_NODES": "node-0 node-1",
            "KERNEL_PYTORCH_FIRST": "127.0.0.1",
            "KERNEL_PYTORCH_NATIVE_ID": "1",
            "KERNEL_PYTORCH_RUN_KEY": folder.id,
        }
        argv = [sys.executable, *program, str(folder.path)]
        environment = {**os.environ, **environment, **variables}
        programs.append(subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True))
        return programs[-1]

    yield begin
    for program in programs:
        with program:
            program.kill()


def listens(folder: JobFolder) -> None:
    """Wait until the first node has claimed its attempt; it waits for the others then."""
    deadline = time.monotonic() + 60
    while not folder.attempt_numbers():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["signal", "stop file", "cancel"])
def test_a_node_that_waits_for_the_others_stops_when_asked(folder, start, how):
    first = start(0)
    listens(folder)
    if how == "signal":
        first.send_signal(signal.SIGUSR1)
    elif how == "stop file":
        deadline = time.monotonic() + 60
        while first.poll() is None and time.monotonic() < deadline:
            folder.request_stop()  # again and again: what was asked for before the attempt is forgotten
            time.sleep(0.05)
    else:
        folder.end("cancelled", "cancelled on request")
    assert first.wait(60) == (0 if how == "cancel" else 75)
    assert [event["because"] for event in folder.events() if event["kind"] == "requeue"] == (
        [] if how == "cancel" else ["asked"]
    )


def test_how_long_nodes_wait_can_be_set(folder, start):
    assert start(0, KERNEL_PYTORCH_MEET_S="0.5").wait(60) == 1
    assert folder.ended()["reason"].startswith("only 1 of 2 nodes met within 0.5 s")


def test_a_time_to_wait_that_is_none(folder, start):
    program = start(0, KERNEL_PYTORCH_MEET_S="2m")
    assert "KERNEL_PYTORCH_MEET_S must be a positive number of seconds, got '2m'" in program.communicate()[1]
    assert program.returncode == 1


def test_a_fault_of_a_node_program_ends_the_job(folder, start):
    """No other node would be without it: it is not a lost node."""
    first, second = start(0), start(1, BROKEN)
    assert first.wait(60) == 1
    assert folder.ended()["reason"].startswith("the node program of node-1 failed: TypeError: ")
    second.wait(60)
