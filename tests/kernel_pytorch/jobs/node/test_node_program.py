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
from job_ranks import until

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.local.target import LocalTarget
from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.read import spec_of

PROGRAM = ["-m", "kernel_pytorch.jobs.node"]
BROKEN = ["-c", "import sys, kernel_pytorch.jobs.node.__main__ as m; m.Member = None; m.main(sys.argv[1:])"]
STAND_IN = """\
import sys
import kernel_pytorch.jobs.node.__main__ as program
from kernel_pytorch.jobs.node.agent import AgentError
from kernel_pytorch.jobs.node.devices import Devices

class Stuck:
    reported = asked = False

    def __init__(self, *arguments):
        pass

    def stop(self):
        self.asked = True

    def reports(self, now):
        if FAULT:
            raise RuntimeError("no such thing")
        if not self.asked or self.reported:
            return []
        self.reported = True
        evidence = {"agent_exit_code": 0, "left": {str(program.here().index): 5}}
        return [{"kind": "ended", "code": 0, "evidence": evidence}]

    def end(self):
        raise AgentError("process 7 of books is left 10 s after SIGKILL")

program.Member = Stuck
program.devices_for_ranks = lambda *arguments: Devices(note="no NUMA binding: none is known")
sys.exit(program.main(sys.argv[1:]))
"""
STUCK = ["-c", STAND_IN.replace("FAULT", "False")]
"""Its rank leaves when asked to, but a process of it stays for ever."""
STUCK_AND_BROKEN = ["-c", STAND_IN.replace("FAULT", "program.here().index == 0")]
LEFT = "process 7 of books is left 10 s after SIGKILL"
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


def notes(folder: JobFolder) -> set[str]:
    return {event["text"] for event in folder.events() if event["kind"] == "note"}


def test_a_process_that_stays_does_not_keep_a_job_from_being_run_again(folder, start):
    """It is the cluster's to wait for it, or to use another node."""
    first, second = start(0, STUCK), start(1, STUCK)
    log = folder.path / "logs" / "attempt-1" / "node-0.log"
    until(log.exists, "the nodes have met")
    first.send_signal(signal.SIGUSR1)
    assert (first.wait(60), second.wait(60)) == (75, 75)
    assert [event["because"] for event in folder.events() if event["kind"] == "requeue"] == ["asked"]
    assert notes(folder) == {f"node-0: {LEFT}"}
    assert folder.ended() is None
    assert LEFT in log.with_name("node-1.log").read_text()


def test_a_fault_and_a_process_that_stays_end_the_job(folder, start):
    first, second = start(0, STUCK_AND_BROKEN), start(1, STUCK_AND_BROKEN)
    assert first.wait(60) == 1
    assert folder.ended()["reason"] == "the node program of node-0 failed: RuntimeError: no such thing"
    assert notes(folder) == {f"node-0: {LEFT}"}
    second.wait(60)


def test_without_the_first_node_too(folder, start):
    first, second = start(0, STUCK), start(1, STUCK)
    until((folder.path / "logs" / "attempt-1" / "node-1.log").exists, "the nodes have met")
    first.kill()
    assert second.wait(60) == 75
    assert notes(folder) == {f"node-1: {LEFT}"}
    assert [event["because"] for event in folder.events() if event["kind"] == "requeue"] == ["fault"]


def test_what_is_known_of_the_devices_is_in_the_nodes_log(folder, start):
    job = folder.job()
    folder.write_job({**job, "spec": {**job["spec"], "gpus_per_node": 1}})
    first, second = start(0, STUCK_AND_BROKEN), start(1, STUCK_AND_BROKEN)
    first.wait(60)
    second.wait(60)
    log = folder.path / "logs" / "attempt-1" / "node-0.log"
    assert "devices: no NUMA binding: none is known" in log.read_text()
