"""Stacks of ranks that really hang: stopped, waiting for another, without a Python stack."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from job_ranks import is_gone, until

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node import processes, stacks
from kernel_pytorch.jobs.recovery.classify import suspect
from kernel_pytorch.jobs.recovery.evidence import Beat

WAITING = """\
import threading
def all_reduce():
    threading.Lock() .acquire() if lock.acquire(False) else lock.acquire()
lock = threading.Lock()
def other():
    threading.Event().wait()
threading.Thread(target=other, daemon=True).start()
lock.acquire()
print("ready", flush=True)
all_reduce()
"""
LOADING = """\
import time
def load():
    while True:
        time.sleep(0.001)
print("ready", flush=True)
load()
"""
Start = Callable[..., int]


@pytest.fixture
def start(folder: JobFolder, tmp_path: Path) -> Iterator[Start]:
    """Start a rank of the first attempt, and wait until it has printed a line; gives its process id."""
    folder.claim_attempt({})
    (tmp_path / "beats").mkdir()
    running = []

    def start(rank: int, argv: list[str], **environment: str) -> int:
        folder.write_job({**folder.job(), "argv": argv, "environment": environment})
        variables = {
            "KERNEL_PYTORCH_JOB": str(folder.path),
            "KERNEL_PYTORCH_ATTEMPT": "1",
            "KERNEL_PYTORCH_BEATS": str(tmp_path / "beats"),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        command = [sys.executable, "-m", "kernel_pytorch.jobs.rank", str(folder.path)]
        process = subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True)
        running.append(process)
        until(lambda: process.poll() is None and "ready\n" in log_of(folder, rank), "the rank's first line")
        return process.pid

    yield start
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log_of(folder: JobFolder, rank: int) -> str:
    log = folder.path / "logs" / "attempt-1" / f"rank-{rank}.log"
    return log.read_text() if log.exists() else ""


def stack_of(folder: JobFolder, rank: int) -> str:
    return (folder.path / "stacks" / "attempt-1" / f"rank-{rank}.txt").read_text()


def python(tmp_path: Path, name: str, text: str) -> list[str]:
    (tmp_path / name).write_text(text)
    return [sys.executable, str(tmp_path / name)]


def test_a_stopped_rank_and_one_that_waits_for_it(start: Start, folder: JobFolder, tmp_path: Path):
    stopped = start(0, python(tmp_path, "loading.py", LOADING))
    waits = start(1, python(tmp_path, "waiting.py", WAITING))
    resource.prlimit(waits, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: processes.state(stopped) == "T", "the stop")
    where = stacks.take({0: stopped, 1: waits}, folder, 1)
    assert where == {0: "loading.py:4 in load", 1: "waiting.py:3 in all_reduce"}
    assert f'File "{tmp_path}/loading.py", line 6 in <module>\n' in stack_of(folder, 0)
    assert f'File "{tmp_path}/waiting.py", line 6 in other\n' in stack_of(folder, 1)  # of the other thread
    assert stack_of(folder, 1).startswith("Fatal Python error: Aborted\n")
    assert is_gone(stopped)
    assert is_gone(waits)
    assert not list(tmp_path.glob("core*"))
    assert not list(Path("/").glob(f"core*{waits}*"))  # the ranks' folder
    beats = {rank: Beat(phase="training", step=8, since_s=60, where=line) for rank, line in where.items()}
    assert suspect(beats | {2: beats[1]}) == 0


def test_a_core_would_be_dumped_to_nobody(start: Start, folder: JobFolder, tmp_path: Path, monkeypatch):
    """A limit of 0 does not keep the kernel from starting the program in core_pattern; 1 does."""
    pid = start(0, python(tmp_path, "loading.py", LOADING))
    resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limits, kill = {}, os.kill

    def look_and_kill(to: int, number: int) -> None:
        limits[number] = resource.prlimit(to, resource.RLIMIT_CORE)[0]
        kill(to, number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", look_and_kill)
        stacks.take({0: pid}, folder, 1)
    assert limits[signal.SIGABRT] == 1


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        (["sh", "-c", "trap '' ABRT; echo ready; while sleep 600; do :; done"], {}),
        ([sys.executable, "-uc", "print('ready'); import time; time.sleep(600)"], {"PYTHONFAULTHANDLER": ""}),
    ],
    ids=["ignores the signal", "no fault handler"],
)
def test_a_rank_without_a_python_stack(start: Start, folder: JobFolder, argv: list[str], environment):
    pid = start(0, argv, **environment)
    (line,) = stacks.take({0: pid}, folder, 1, within_s=0.3).values()
    assert line.startswith(f"process {pid} sleeps")
    assert stack_of(folder, 0) == f"no Python stack: {line}\n"
    until(lambda: is_gone(pid), "the end of the rank", 10)


def test_an_earlier_stack_in_the_log_is_not_taken(start: Start, folder: JobFolder, tmp_path: Path):
    text = "print('Fatal Python error: Aborted\\n\\nCurrent thread 1 (most recent call first):')\n"
    text += "print('  File \"old.py\", line 1 in old')\n" + LOADING
    pid = start(0, python(tmp_path, "loading.py", text))
    assert stacks.take({0: pid}, folder, 1) == {0: "loading.py:6 in load"}
    assert "old.py" not in stack_of(folder, 0)


def test_a_process_that_is_not_of_the_job_is_left_alone(start: Start, folder: JobFolder):
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert stacks.take({0: process.pid, 1: 2**22 + 1}, folder, 1) == {}
            assert process.poll() is None
        finally:
            process.kill()
    assert not list((folder.path / "stacks").iterdir())


def test_a_stack_that_cannot_be_written_is_told_all_the_same(start: Start, folder: JobFolder, tmp_path: Path):
    pid = start(0, python(tmp_path, "loading.py", LOADING))
    (folder.path / "stacks").rmdir()
    assert stacks.take({0: pid}, folder, 1) == {0: "loading.py:4 in load"}


@pytest.mark.parametrize(
    ("lines", "innermost"),
    [
        (['Current thread 0x1 (most recent call first):', '  File "/a/b.py", line 3 in f'], "b.py:3 in f"),
        (
            [
                'Thread 0x1 [loader] (most recent call first):',
                '  File "loader.py", line 1 in load',
                "",
                'Current thread 0x2 [main] (most recent call first):',
                '  File "a b.py", line 20 in <lambda>',
                '  File "c.py", line 30 in main',
            ],
            "a b.py:20 in <lambda>",
        ),
        (
            [
                'Current thread 0x3 (most recent call first):',
                "  <no Python frame>",
                "",
                'Thread 0x1 (most recent call first):',
                '  File "loader.py", line 1 in load',
                "",
                'Thread 0x2 (most recent call first):',
                '  File "main.py", line 2 in step',
            ],
            "main.py:2 in step",
        ),
        (['Current thread 0x3 (most recent call first):', "  <no Python frame>"], None),
        (["Extension modules: torch"], None),
    ],
)  # fmt: skip
def test_the_innermost_line(lines: list[str], innermost: str | None):
    stack = "\n".join(["Fatal Python error: Aborted", "", *lines, ""])
    assert stacks._innermost(stack) == innermost
