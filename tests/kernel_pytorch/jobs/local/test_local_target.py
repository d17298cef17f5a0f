"""This machine as a target: what it refuses, what it shows, and whole jobs with the real node program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

import kernel_pytorch
from kernel_pytorch.errors import KernelPytorchError
from kernel_pytorch.jobs.facts import JobState
from kernel_pytorch.jobs.folder import JobFolder, job_folders
from kernel_pytorch.jobs.local import gpus
from kernel_pytorch.jobs.local import target as local
from kernel_pytorch.jobs.local.processes import end_processes, end_supervisor, supervisor_of
from kernel_pytorch.jobs.local.target import LocalTarget
from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.node.processes import Family, lives
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.spec import TrainingJobSpec

T = TypeVar("T")
SOURCES = str(Path(kernel_pytorch.__file__).parents[1])
ENDS_IN_S = 120.0


def until(found: Callable[[], T | None], what: str) -> T:
    """What ``found`` returns when it is neither None nor False."""
    deadline = time.monotonic() + ENDS_IN_S
    while (result := found()) is None or result is False:
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)
    return result


def spec(command: list[str], **values) -> TrainingJobSpec:
    return spec_of({"name": "books", "command": command, **values})


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """The jobs of a folder; at the end none of their processes is left."""
    monkeypatch.setenv("PYTHONPATH", SOURCES)
    made = Jobs(tmp_path / "jobs")
    yield made
    for path in made.root.glob("*/"):
        end_supervisor(JobFolder(path), 0.0)
        end_processes(JobFolder(path))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"image": "nemo:1"}, "image 'nemo:1': this machine runs no containers; leave it out"),
        ({"volumes": [{"a": "b"}]}, "volumes are for containers, which this machine does not run"),
        ({"options": {"local": {"qos": "high"}}}, "options.local has qos, but there are no such options"),
        ({"secrets": {"T": "file:/gone"}}, "secret T: the file /gone cannot be read"),
        ({"gpus_per_node": 2, "nodes": 2}, "2 x 2 GPUs are more than the 3 of this machine"),
    ],
)
def test_what_it_can_never_run(monkeypatch, values: dict, line: str):
    monkeypatch.setattr(gpus, "num_gpus", lambda: 3)
    with pytest.raises(ValueError, match=re.escape(line)):
        LocalTarget().check(spec(["true"], **values), {})


def test_what_it_can_run(monkeypatch):
    monkeypatch.setattr(gpus, "num_gpus", lambda: 4)
    assert LocalTarget().check(spec(["true"], gpus_per_node=2, nodes=2), {}) == ()
    monkeypatch.setattr(gpus, "num_gpus", lambda: None)
    (note,) = LocalTarget().check(spec(["true"], gpus_per_node=2, nodes=2), {})
    assert "how many it has is not known" in note


def test_what_it_does_not_use_is_said():
    unused = {"options": {"slurm": {"qos": "high"}}, "enable_auto_scaling": True}
    asked = spec(["true"], resources={"memory_gb": "64G", "cpu_cores": 4}, **unused)
    assert LocalTarget().check(asked, {}) == (
        "options.slurm are not used: the job runs on this machine",
        "--memory and --cpus: not used, as this machine limits no job",
        "enable_auto_scaling is not used: the nodes of a local job are as many as nodes says",
    )
    assert LocalTarget().check(spec(["true"], resources={"cpu_cores": 4}), {}) == (
        "--cpus: not used, as this machine limits no job",
    )


def test_hidden_gpus_do_not_count(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpus.num_gpus()


def test_nodes_share_the_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpus.share_of(node, 2, 2) for node in range(2)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert gpus.share_of(0, 1, 2) == gpus.share_of(0, 2, None) == gpus.share_of(0, 2, 0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    assert gpus.share_of(1, 3, 1) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}


def test_a_dry_run_is_a_script_of_comments_and_one_command(jobs, tmp_path):
    command = ["train", "a\n$(touch x)", "\udcff"]
    root = Jobs(tmp_path / "it's here")
    (dry,) = root.submit(spec(command, env_vars={"TOKEN": "hunter2"}), LocalTarget(), dry_run=True)
    assert "hunter2" not in dry.rendered
    lines = [line for line in dry.rendered.splitlines() if not line.startswith("#")]
    run = [sys.executable, "-m", "kernel_pytorch.jobs.local.supervise", str(dry.folder)]
    words = subprocess.run(["sh", "-c", f"printf '%s\\0' {lines[0]}"], capture_output=True, text=True).stdout
    assert (len(lines), words.split("\0")[:-1]) == (1, run)
    assert subprocess.run(["sh", "-n"], input=dry.rendered, text=True).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_what_ranks_inherit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MY_NAME": "x\udcff",
        "LC_TIME": "C",
        "PYTHONPATH": "src:/lib",
        "RANK": "3",
        "MASTER_PORT": "1",
        "KERNEL_PYTORCH_JOB": "/outer",
        "KERNEL_PYTORCH_JOBS": "/jobs",
    }.items():
        monkeypatch.setenv(name, value)
    all_of_it = local._environment(inherit=True)
    assert (all_of_it["MY_NAME"], all_of_it["KERNEL_PYTORCH_JOBS"]) == ("x\udcff", "/jobs")
    assert all_of_it["PYTHONPATH"] == f"{tmp_path}/src:/lib"
    assert not {"RANK", "MASTER_PORT", "KERNEL_PYTORCH_JOB"} & all_of_it.keys()
    least = local._environment(inherit=False)
    assert {"PATH", "LC_TIME", "PYTHONPATH"} <= least.keys()
    assert not {"MY_NAME", "KERNEL_PYTORCH_JOBS"} & least.keys()


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the node programs be a shell script."""

    def replace(script: str) -> None:
        program = tmp_path / "python"
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *jobs.node*) {script} ;; *) exec {sys.executable} "$@" ;; esac\n'
        )
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


def test_a_job_that_does_not_begin_says_why_and_leaves_nothing(jobs, python):
    python("echo loading; echo no route to host; exit 1")
    with pytest.raises(KernelPytorchError, match=r"did not begin: .* returned 1: no route to host$"):
        jobs.submit(spec(["true"], nodes=2), LocalTarget())
    assert job_folders(jobs.root) == []


def test_a_supervisor_that_does_not_start(jobs, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho libpython is missing >&2; exit 127\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(KernelPytorchError, match=r"did not begin: libpython is missing$"):
        jobs.submit(spec(["true"]), LocalTarget())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(KernelPytorchError, match=r"No such file or directory$"):
        jobs.submit(spec(["true"]), LocalTarget())
    assert job_folders(jobs.root) == []


def test_ctrl_c_while_a_job_begins_leaves_no_process(jobs, python, monkeypatch):
    python("sleep 600")
    family: list[Family] = []

    def interrupt(folder: JobFolder) -> int:
        family.append(Family({"KERNEL_PYTORCH_JOB": str(folder.path)}))
        if family[0].living():
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(local, "_num_begun", interrupt)
    with pytest.raises(KeyboardInterrupt):
        jobs.submit(spec(["true"]), LocalTarget())
    assert family[0].living() == []
    assert job_folders(jobs.root) == []


def test_a_job_that_takes_too_long_to_begin_is_ended(jobs, python, monkeypatch):
    python("echo waiting for node-1; sleep 600")
    monkeypatch.setattr(local, "_BEGIN_S", 1.0)
    with pytest.raises(KernelPytorchError, match=r"did not begin: waiting for node-1$"):
        jobs.submit(spec(["true"]), LocalTarget())
    assert job_folders(jobs.root) == []


def test_a_job_of_another_machine(jobs):
    folder = JobFolder.create(jobs.root, {"name": "books", "target": "local", "argv": [], "cwd": "/"})
    folder.write_native("local", "node-of-another-name-1-2")
    status = jobs.status(folder.id)
    assert (status.state, status.reason) == (None, "it runs on node-of-another-name: ask there")
    with pytest.raises(KernelPytorchError, match="runs on node-of-another-name: requeue it there"):
        jobs.requeue(folder.id)
    with pytest.raises(KernelPytorchError, match="runs on node-of-another-name: cancel it there"):
        jobs.cancel(folder.id)


def test_a_job_that_is_being_submitted_is_not_lost(jobs):
    folder = JobFolder.create(jobs.root, {"name": "books", "target": "local", "argv": [], "cwd": "/"})
    status = jobs.status(folder.id)
    assert (status.native_state, status.reason) == (None, "no cluster has acknowledged the job")


# Says what it was given, has a child that outlives it if it may, and waits.
STAY = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.environ["MY_NAME"], len(os.environ["TOKEN"]), len(os.environ["KEY"]), flush=True)
time.sleep(600)
"""


def in_another_shell(jobs: Jobs, script: str, id: str) -> str:
    """What a script prints about a job in another process."""
    before = f"import sys; from kernel_pytorch.jobs.manage import Jobs; jobs = Jobs({str(jobs.root)!r}); "
    done = subprocess.run(
        [sys.executable, "-c", before + script, id],
        env={"PYTHONPATH": SOURCES, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_job_from_the_first_word_to_the_last(jobs, tmp_path, monkeypatch):
    """Also: two shells see it, secrets are nowhere, and cancelling it leaves no process."""
    monkeypatch.setenv("MY_NAME", "inherited")
    monkeypatch.setenv("MY_KEY", "swordfish")
    (tmp_path / "token").write_text("hunter2")
    secrets = {"TOKEN": f"file:{tmp_path}/token", "KEY": "env:MY_KEY"}
    one = spec([sys.executable, "-c", STAY], secrets=secrets)
    (submitted,) = jobs.submit(one, LocalTarget())
    folder, id = JobFolder(submitted.folder), submitted.job_id
    assert [event["kind"] for event in folder.events()] == ["submitted", "attempt"]
    lines = jobs.logs(id, follow=True)
    assert next(lines) == "[0] inherited 7 9"

    state = (
        "status = jobs.status(sys.argv[1]); print(status.state.value, status.attempt, 'torch' in sys.modules)"
    )
    assert in_another_shell(jobs, state, id) == "running 1 False"
    family = Family({"KERNEL_PYTORCH_JOB": str(folder.path)})
    pids = family.living()
    assert len(pids) >= 4  # node program, torchrun, rank and its child
    written = [path.read_bytes() for path in folder.path.rglob("*") if path.is_file()]
    for pid in [*pids, supervisor_of(folder.path)]:
        with suppress(OSError):
            written.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    for text in written:
        assert b"hunter2" not in text
        assert b"swordfish" not in text
        assert b"inherited" not in text or text == b"inherited 7 9\n"

    ended = threading.Thread(target=lambda: list(lines), daemon=True)
    ended.start()
    assert in_another_shell(jobs, "print(jobs.cancel(sys.argv[1]).state.value)", id) == "cancelled"
    assert not any(map(lives, pids))
    assert family.living() == []
    assert supervisor_of(folder.path) is None
    ended.join(ENDS_IN_S)
    assert not ended.is_alive()
    status = jobs.status(id)
    assert (status.state, status.attempt, status.reason) == (JobState.CANCELLED, 1, "cancelled on request")
    assert "requeue" not in [event["kind"] for event in folder.events()]
    assert jobs.list() == [status]


def test_a_job_whose_supervisor_was_killed_is_run_again(jobs, tmp_path):
    gate = tmp_path / "gate"
    (submitted,) = jobs.submit(spec(["sh", "-c", f"test -e {gate} || sleep 600"]), LocalTarget())
    folder = JobFolder(submitted.folder)
    supervisor = supervisor_of(folder.path)
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    family = Family({"KERNEL_PYTORCH_JOB": str(folder.path)})
    until(lambda: supervisor_of(folder.path) is None and not family.living(), "end of all processes")
    assert jobs.status(submitted.job_id).native_state == "lost"
    gate.touch()
    native_id = jobs.requeue(submitted.native_id)
    assert native_id != submitted.native_id
    assert jobs.status(native_id).attempt == 2
    status = jobs.wait(submitted.job_id)
    assert (status.state, status.native_id) == (JobState.COMPLETED, native_id)
    with pytest.raises(ValueError, match="exclude=n3: all nodes of a local job are this machine"):
        jobs.requeue(submitted.job_id, exclude=["n3"])
    assert jobs.status(submitted.job_id).state is JobState.COMPLETED
