"""The supervisor: real processes, with a stand-in for the node program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

import kernel_pytorch
from kernel_pytorch.jobs.facts import JobState
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.local import supervise
from kernel_pytorch.jobs.local.processes import end_processes, end_supervisor, supervisor_of, take_lock
from kernel_pytorch.jobs.local.supervise import Supervisor, main
from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.node.processes import Family, lives
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.request import job_of

T = TypeVar("T")
ENDS_IN_S = 60.0


def until(found: Callable[[], T | None], what: str) -> T:
    """What ``found`` returns when it is neither None nor False."""
    deadline = time.monotonic() + ENDS_IN_S
    while (result := found()) is None or result is False:
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)
    return result


class Job:
    """A job whose nodes do what the test says."""

    def __init__(self, jobs: Path, starts: list[list[str]], **values: Any) -> None:
        spec = spec_of({"name": "books", "command": ["true"], "nodes": len(starts[0]), **values})
        spec = spec.with_options(nodes=spec.num_nodes, ranks_per_node=spec.num_ranks_per_node)
        self.folder = JobFolder.create(jobs, job_of(spec, "local", {}, "/"))
        (self.folder.path / "script.json").write_text(json.dumps(starts))

    def run(self) -> None:
        """Supervise it here."""
        Supervisor(self.folder, "here-1-1", "standin").run()

    def supervised(self) -> subprocess.Popen[str]:
        """Supervise it in another process."""
        script = "import sys; from kernel_pytorch.jobs.local.supervise import main; "
        script += "sys.exit(main(sys.argv[1:], 'standin'))"
        command = [sys.executable, "-c", script, str(self.folder.path)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def node(self, index: int, start: int = 0) -> dict[str, Any]:
        """What a node noted when it began."""
        path = self.folder.path / f"began-{start}-{index}.json"
        return until(lambda: json.loads(path.read_text()) if path.exists() else None, path.name)

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.folder.events() if event["kind"] != "attempt"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Job]]:
    """Make a job; at the end no process of it is left."""
    path = [str(Path(kernel_pytorch.__file__).parents[1]), str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    made: list[Job] = []

    def make(*starts: list[str], **values: Any) -> Job:
        made.append(Job(tmp_path / "jobs", list(starts), **values))
        (made[-1].folder.path / "logs" / "supervisor.log").write_bytes(b"")
        return made[-1]

    yield make
    for one in made:
        end_supervisor(one.folder, 0.0)
        end_processes(one.folder)


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        (0, "completed", "the first node's program returned 0"),
        (1, "failed", "the first node's program returned 1: no route to host"),
        (2, "failed", "the first node's program returned 2: no route to host"),
    ],
)
def test_the_first_node_decides_if_it_wrote_no_end(job, code, state, reason):
    one = job([f"sys.exit({code})", "sys.exit(1)"])
    if code:
        (one.folder.path / "logs" / "supervisor.log").write_text("begins\nno route to host\n\n")
    one.run()
    end = one.folder.ended()
    assert (end["state"], end["reason"]) == (state, reason)
    assert len(one.folder.attempt_numbers()) == 1


def test_an_end_that_a_node_wrote_counts(job):
    one = job(["folder.end('failed', 'no memory'); sys.exit(75)"])
    one.run()
    assert one.folder.ended()["reason"] == "no memory"
    assert len(one.folder.attempt_numbers()) == 1


def test_a_job_that_has_ended_does_not_begin(job):
    one = job(["sleep()"])
    one.folder.end("cancelled", "cancelled on request")
    one.run()
    assert one.folder.attempt_numbers() == []


def test_what_is_to_be_requeued_is_started_again(job, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    before = time.time()
    one = job(
        ["sys.exit(75)", "sys.exit(75)"], ["sys.exit(75)", "die()"], ["", ""], gpus_per_node=2, time="2h"
    )
    one.run()
    assert one.folder.ended()["state"] == "completed"
    nodes = [[one.node(index, start) for index in range(2)] for start in range(3)]
    for start in nodes:
        assert [node["KERNEL_PYTORCH_NODE"] for node in start] == ["0", "1"]
        assert [node["CUDA_VISIBLE_DEVICES"] for node in start] == ["4,5", "6,7"]
        assert start[0]["KERNEL_PYTORCH_RUN_KEY"] == start[1]["KERNEL_PYTORCH_RUN_KEY"]
        assert 7200 <= float(start[0]["KERNEL_PYTORCH_ENDS_AT"]) - before < 7200 + ENDS_IN_S
    assert len({start[0]["KERNEL_PYTORCH_RUN_KEY"] for start in nodes}) == 3
    assert len({node["pid"] for start in nodes for node in start}) == 6
    names = ("NODES", "FIRST", "NATIVE_ID", "JOB")
    told = [nodes[0][1][f"KERNEL_PYTORCH_{name}"] for name in names]
    assert told == ["node-0 node-1", "127.0.0.1", "here-1-1", str(one.folder.path)]


def test_when_all_were_killed_the_job_runs_again(job):
    one = job(["die()", "die()"], ["", ""])
    one.run()
    assert one.kinds() == ["failure", "requeue"]
    failure, requeue = one.folder.events()[1:3]
    assert failure["failure"]["kind"] == "first_node_lost"
    assert requeue["because"] == "fault"
    assert requeue["text"] == "all node programs were killed; requeue 1 of 20"
    assert one.folder.ended()["state"] == "completed"


def test_when_all_were_killed_a_job_that_must_not_restart_fails(job):
    one = job(["die()"], restart_policy="Never")
    one.run()
    assert one.folder.ended()["state"] == "failed"
    assert one.folder.ended()["reason"].startswith("all node programs were killed")


def test_nodes_that_stay_behind_the_first_are_ended(job, monkeypatch):
    monkeypatch.setattr(supervise, "_GOODBYE_S", 0.1)
    one = job(["sys.exit(75)", "sleep()"], ["", ""])
    one.run()
    assert not lives(one.node(1)["pid"])
    assert one.folder.ended()["state"] == "completed"


def test_what_goes_on_beyond_its_time_limit_is_ended(job, monkeypatch):
    monkeypatch.setattr(supervise, "OVERTIME_S", 1.0)
    one = job(["sleep()", "sleep()"], ["", ""], max_runtime_hours=1 / 3600)
    one.run()
    failure, requeue = [event for event in one.folder.events() if event["kind"] != "attempt"]
    assert failure["failure"]["kind"] == "timeout"
    assert requeue["text"].startswith("it went on for 1 s after its time limit; requeue 1 of 20")
    assert one.folder.ended()["state"] == "completed"


def test_what_a_killed_node_leaves_behind_is_ended_before_the_next_attempt(job):
    left = "os.listdir('/proc'); assert len(Family({'KERNEL_PYTORCH_JOB': str(folder.path)}).living()) == 0"
    look = f"from kernel_pytorch.jobs.node.processes import Family; {left}"
    one = job(["leave_a_child(); leave_a_child(); die()"], [look])
    one.run()
    assert one.folder.ended()["state"] == "completed"
    assert Family({"KERNEL_PYTORCH_JOB": str(one.folder.path)}).living() == []


def test_asked_to_end_it_passes_that_on_and_runs_the_job_no_more(job):
    leave = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); sleep()"
    one = job([leave, leave], ["sleep()", "sleep()"])
    with one.supervised() as supervisor:
        one.node(0), one.node(1)
        supervisor.terminate()
        assert supervisor.wait(ENDS_IN_S) == 0
    assert one.kinds() == ["note"]
    assert one.folder.ended() is None
    assert len(one.folder.attempt_numbers()) == 1


def test_asked_to_end_it_kills_who_does_not_leave(job, monkeypatch):
    monkeypatch.setattr(supervise, "GRACE_S", 0.1)
    one = job(["signal.signal(signal.SIGTERM, signal.SIG_IGN); sleep()"])
    supervisor = Supervisor(one.folder, "here-1-1", "standin")
    supervisor.asked = True
    supervisor.run()
    assert one.kinds() == ["note"]


def test_everything_dies_with_a_killed_supervisor_and_the_job_is_lost_not_failed(job, tmp_path):
    one = job(["sleep()", "sleep()"])
    jobs = Jobs(tmp_path / "jobs")
    with one.supervised() as supervisor:
        pids = [one.node(index)["pid"] for index in range(2)]
        assert supervisor_of(one.folder.path) == supervisor.pid
        status = jobs.status(one.folder.id)
        assert (status.state, status.native_state) == (JobState.RUNNING, "running")
        assert str(supervisor.pid) in status.native_id
        supervisor.kill()
    until(lambda: not any(map(lives, pids)), "end of the nodes")
    assert supervisor_of(one.folder.path) is None
    status = jobs.status(one.folder.id)
    assert (status.state, status.native_state) == (None, "lost")
    assert f"kernel-pytorch requeue {one.folder.id} runs it again" in status.reason
    assert jobs.wait(one.folder.id).state is None


def test_cancel_ends_what_a_killed_supervisor_left_behind(job, tmp_path):
    one = job(["leave_a_child(); folder.event('note', 'left'); sleep()"])
    family = Family({"KERNEL_PYTORCH_JOB": str(one.folder.path)})
    with one.supervised() as supervisor:
        until(lambda: "note" in one.kinds(), "child")
        supervisor.kill()
    until(lambda: not lives(one.node(0)["pid"]), "end of the node")
    assert len(family.living()) == 1
    assert Jobs(tmp_path / "jobs").cancel(one.folder.id).state is JobState.CANCELLED
    assert family.living() == []


def test_nodes_die_with_their_supervisor_however_early(job):
    one = job(["sleep()"])
    with one.supervised() as supervisor:
        family = Family({"KERNEL_PYTORCH_JOB": str(one.folder.path)})
        until(family.living, "node")
        supervisor.kill()
    until(lambda: not family.living(), "end of the node")


def test_a_second_supervisor_does_nothing(job):
    one = job(["sleep()"], ["sleep()"])
    with one.supervised() as first:
        one.node(0)
        with one.supervised() as second:
            _, errors = second.communicate(timeout=ENDS_IN_S)
        assert (second.returncode, errors) == (1, f"{one.folder.id} has a supervisor already\n")
        assert supervisor_of(one.folder.path) == first.pid
        assert lives(one.node(0)["pid"])
        first.kill()


def test_a_look_does_not_keep_a_supervisor_from_its_lock(folder: JobFolder):
    assert supervisor_of(folder.path) is None  # no file yet
    script = "import sys; from pathlib import Path; from kernel_pytorch.jobs.local.processes import *\n"
    script += "lock = take_lock(Path(sys.argv[1])); print(lock is not None, flush=True); sys.stdin.read()"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", script, folder.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(Path(kernel_pytorch.__file__).parents[1])},
        ) as other:
            assert other.stdout is not None
            while not (line := other.stdout.peek()):
                supervisor_of(folder.path)
            assert line == b"True\n"
            assert supervisor_of(folder.path) == other.pid
            assert take_lock(folder.path) is None
            other.communicate()
    lock = take_lock(folder.path)
    assert lock is not None
    os.close(lock)


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, capfd):
    assert main([str(tmp_path / "gone")]) == 1
    errors = capfd.readouterr().err
    assert errors.startswith("kernel_pytorch.jobs.local: error: ")
    assert errors.count("\n") == 1
    assert main([]) == 2


def test_a_folder_that_vanishes_ends_the_job(job):
    one = job(["import shutil; shutil.rmtree(folder.path); sys.exit(75)"])
    with one.supervised() as supervisor:
        _, errors = supervisor.communicate(timeout=ENDS_IN_S)
    assert supervisor.returncode == 1
    assert errors.splitlines()[-1].startswith("kernel_pytorch.jobs.local: error: ")
    with suppress(ProcessLookupError):
        os.kill(supervisor.pid, signal.SIGKILL)
