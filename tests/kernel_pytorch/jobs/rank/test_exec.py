"""``python -m kernel_pytorch.jobs.rank``: the user's command, in a process that really execs it."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernel_pytorch
from kernel_pytorch.jobs.folder import JobFolder, as_text
from kernel_pytorch.jobs.rank.gate import allow_restart

RANK = [sys.executable, "-m", "kernel_pytorch.jobs.rank"]
BASE = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(Path(kernel_pytorch.__file__).parents[1]),
    "LC_ALL": "C",  # the bytes are the same in any locale
}
# Prints the sizes of what the kernel was given as argv and environ, and both.
SHOW = (
    "import sys; both = [open('/proc/self/' + name, 'rb').read() for name in ('cmdline', 'environ')]; "
    "sys.stdout.buffer.write(b'%d %d\\n' % tuple(map(len, both)) + b''.join(both))"
)
IGNORE_ALL = "for n in (1, 2, 10, 15): signal.signal(n, signal.SIG_IGN)"
NO_NUL = st.binary(max_size=20).filter(lambda data: b"\0" not in data)
NAMES = NO_NUL.filter(lambda name: name and b"=" not in name and os.fsdecode(name) not in BASE)
NASTY = [
    b"",
    b"a b",
    b"'",
    b'"',
    b"\n",
    b"$(touch x)",
    b"`id`",
    b";",
    b"$$",
    b"*",
    b"--",
    b"--run",
    b"\\",
    b"%N",
    b"!",
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a surrogate in UTF-8
    "本\U0001f600".encode(),
]


def write_job(
    folder: JobFolder,
    argv: Sequence[bytes],
    environment: Mapping[bytes, bytes] = {},
    secrets: Mapping[str, str] = {},
    cwd: bytes = b"/",
) -> None:
    def typed(data: bytes) -> str:
        return as_text(os.fsdecode(data))

    folder.write_job(
        {
            "argv": [typed(word) for word in argv],
            "environment": {typed(name): typed(value) for name, value in environment.items()},
            "secrets": dict(secrets),
            "cwd": typed(cwd),
        }
    )


def run_rank(
    folder: JobFolder, environment: Mapping[str, str] = {}, **options
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*RANK, folder.path], env={**BASE, **environment}, capture_output=True, check=False, **options
    )


def job_environment() -> dict[str, str]:
    names = ("KERNEL_PYTORCH_", "RANK", "LOCAL_RANK", "TORCHELASTIC_")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    return JobFolder.create(tmp_path_factory.mktemp("jobs"), {"name": "bytes"})


@given(st.lists(NO_NUL, max_size=8), st.dictionaries(NAMES, NO_NUL, max_size=8))
@example(NASTY, {b"N" + name.replace(b"=", b""): name for name in NASTY})
@settings(max_examples=25)
def test_argv_and_environ_arrive_byte_for_byte(
    shared_folder: JobFolder, words: list[bytes], environment: dict[bytes, bytes]
):
    argv = [sys.executable.encode(), b"-ISc", SHOW.encode(), *words]
    write_job(shared_folder, argv, environment)
    done = run_rank(shared_folder)
    assert done.stderr == b""
    sizes, _, both = done.stdout.partition(b"\n")
    length, total = map(int, sizes.split())
    assert len(both) == length + total
    assert both[:length] == b"".join(word + b"\0" for word in argv)
    seen = dict(line.split(b"=", 1) for line in both[length:-1].split(b"\0"))
    base = {name.encode(): value.encode() for name, value in BASE.items()}
    assert seen == {**base, b"PYTHONFAULTHANDLER": b"1", **environment}


def test_where_it_runs(folder: JobFolder, tmp_path: Path):
    cwd = os.fsencode(tmp_path) + b"/a \xff"
    os.mkdir(cwd)
    write_job(folder, [b"pwd", b"-P"], cwd=cwd)
    assert run_rank(folder).stdout == cwd + b"\n"


def test_what_env_sets_wins_and_decides_what_is_found(folder: JobFolder, tmp_path: Path):
    program = tmp_path / "hello"
    program.write_text('#!/bin/sh\necho "$WHO $PYTHONFAULTHANDLER"\n')
    program.chmod(0o755)
    path = os.fsencode(tmp_path) + b":" + os.fsencode(os.environ["PATH"])
    write_job(folder, [b"hello"], {b"PATH": path, b"WHO": b"job", b"PYTHONFAULTHANDLER": b"0"})
    assert run_rank(folder, {"WHO": "node"}).stdout == b"job 0\n"


def test_what_python_ignores_is_not_ignored_but_a_request_to_stop_is(folder: JobFolder):
    write_job(folder, [b"grep", b"SigIgn", b"/proc/self/status"])
    ignored = int(run_rank(folder).stdout.split()[1], 16)
    names = [number.name for number in signal.Signals if ignored >> (number - 1) & 1]
    assert names == ["SIGUSR1"]


def test_what_the_agent_ignores_is_not_ignored(folder: JobFolder):
    write_job(folder, [b"grep", b"SigIgn", b"/proc/self/status"])
    ignoring = f"import os, signal\n{IGNORE_ALL}\nos.execv({RANK[0]!r}, {[*RANK, str(folder.path)]})"
    done = subprocess.run([sys.executable, "-c", ignoring], env=BASE, capture_output=True, check=True)
    ignored = int(done.stdout.split()[1], 16)
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    assert [number for number in stops if ignored >> (number - 1) & 1] == [signal.SIGUSR1]


def test_a_rank_of_an_attempt_has_a_log_and_says_that_it_started(folder: JobFolder, in_job: Path):
    log = folder.path / "logs" / "attempt-1" / "rank-3.log"
    write_job(folder, [b"sh", b"-c", b"echo $$; echo error >&2"])
    size = 0
    for _ in range(2):
        done = run_rank(folder, job_environment())
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        started = json.loads((in_job / "started-1.json").read_text())
        assert 0 < started.pop("time_s") < time.monotonic()
        *_, pid, error = log.read_text().splitlines()
        assert error == "error"
        assert started == {"rank": 3, "pid": int(pid), "restart": 2, "world": 1, "log_from": size}
        size = log.stat().st_size
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_restarted_rank_waits_until_it_was_decided_that_a_restart_helps(folder: JobFolder, in_job: Path):
    (in_job / "restart-2-allowed").unlink()
    write_job(folder, [b"echo", b"begun"])
    log = folder.path / "logs" / "attempt-1" / "rank-3.log"
    environment = {**BASE, **job_environment()}
    with subprocess.Popen([*RANK, folder.path], env=environment) as rank:
        try:
            while not (in_job / "started-1.json").exists():
                assert rank.poll() is None
            allow_restart(in_job, 1)  # of an earlier one
            with pytest.raises(subprocess.TimeoutExpired):
                rank.wait(0.3)
            assert log.read_text() == ""
            allow_restart(in_job, 2)
            assert rank.wait(60) == 0
        finally:
            rank.kill()
    assert log.read_text() == "begun\n"


def test_a_rank_that_cannot_have_a_log_says_so(folder: JobFolder, in_job: Path):
    (folder.path / "logs").rmdir()
    write_job(folder, [b"pwd"])
    done = run_rank(folder, job_environment())
    assert (done.returncode, done.stdout) == (2, b"")
    logs = f"{folder.path}/logs"
    assert done.stderr.decode().endswith(f"{logs}/attempt-1 cannot be made: the folder {logs} has vanished\n")
    assert len(done.stderr.splitlines()) == 1


def test_secrets_arrive_and_are_written_nowhere(folder: JobFolder, tmp_path: Path):
    (tmp_path / "token").write_bytes(b"hunter2 \xff\n\n")
    sources = {"TOKEN": f"file:{tmp_path}/token", "KEY": "env:MY_KEY"}
    write_job(folder, [b"sh", b"-c", b'printf "%s|%s" "$TOKEN" "$KEY"'], secrets=sources)
    assert run_rank(folder, {"MY_KEY": "swordfish"}).stdout == b"hunter2 \xff\n|swordfish"
    for path in folder.path.rglob("*"):
        assert path.is_dir() or not any(s in path.read_bytes() for s in (b"hunter2", b"swordfish")), path


@pytest.mark.parametrize(
    ("job", "kind", "line"),
    [
        ({"argv": [b"no-such program"]}, "FileNotFoundError", "No such file or directory: 'no-such program'"),
        ({"argv": [b"/etc/passwd"]}, "PermissionError", "Permission denied: '/etc/passwd'"),
        (
            {"argv": [b"pwd"], "cwd": b"/gone"},
            "JobFolderError",
            "/gone cannot be entered: No such file or directory",
        ),
        (
            {"argv": [b"pwd"], "secrets": {"T": "file:/gone"}},
            "JobFolderError",
            "secret T: /gone cannot be read: No such file or directory",
        ),
        (
            {"argv": [b"pwd"], "secrets": {"T": "env:NONE"}},
            "JobFolderError",
            "secret T: the environment has no NONE",
        ),
        ({"argv": [b"pwd", b"a\0b"]}, "ValueError", "embedded null byte"),
    ],
    ids=["no program", "no right", "no folder", "no secret file", "no secret variable", "no argument"],
)
def test_why_it_could_not_start_is_recorded(folder: JobFolder, in_job: Path, job: dict, kind: str, line: str):
    write_job(folder, **job)
    done = run_rank(folder, job_environment())
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")
    log = (folder.path / "logs" / "attempt-1" / "rank-3.log").read_text()
    assert log.startswith("kernel_pytorch.jobs.rank: error: ")
    assert log.endswith(f"{line}\n")
    assert len(log.splitlines()) == 1
    record = folder.record(1, 3)
    assert (record["type"], record["restart"], record["step"]) == (kind, 2, None)
    assert record["error"].endswith(line)


def test_a_job_that_others_can_write_is_not_run(folder: JobFolder, in_job: Path, tmp_path: Path):
    write_job(folder, [b"touch", os.fsencode(tmp_path / "was run")])
    folder.path.chmod(0o777)
    done = run_rank(folder, job_environment())
    assert done.returncode == 2
    assert "others can write" in (folder.path / "logs" / "attempt-1" / "rank-3.log").read_text()
    assert folder.record(1, 3)["error"].startswith("others can write")
    assert not (tmp_path / "was run").exists()


def test_usage():
    done = subprocess.run(RANK, capture_output=True, text=True, env=BASE)
    assert (done.returncode, done.stderr) == (2, "usage: python -m kernel_pytorch.jobs.rank FOLDER\n")


def agent(folder: JobFolder, **options) -> subprocess.Popen:
    """Starts a rank and waits, as torchrun does, below this process, which is the node program."""
    script = f"import subprocess, sys\nsubprocess.run({[*RANK, str(folder.path)]})"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**BASE, "KERNEL_PYTORCH_NODE_PID": str(os.getpid())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_dies_with_its_agent(folder: JobFolder, number: signal.Signals):
    write_job(folder, [b"sh", b"-c", b"echo runs; read never"])
    with agent(folder) as process:
        process.stdout.readline()
        process.send_signal(number)
        ended, _, _ = select.select([process.stdout], [], [], 60)  # when the last that could write has
        process.stdin.close()  # else this ends it
    assert ended


def test_a_rank_below_its_agent_runs(folder: JobFolder):
    write_job(folder, [b"echo", b"here"])
    with agent(folder) as process:
        assert process.communicate() == (b"here\n", b"")


def test_a_rank_whose_agent_died_before_does_not_run(folder: JobFolder, tmp_path: Path):
    write_job(folder, [b"touch", os.fsencode(tmp_path / "was run")])
    rank = f"read gate <&3; exec {sys.executable} -m kernel_pytorch.jobs.rank {folder.path}"
    with subprocess.Popen(
        ["sh", "-c", f"exec 3<&0; ({rank}) & echo agent ends"],
        env={**BASE, "KERNEL_PYTORCH_NODE_PID": str(os.getpid())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.wait()
        out, errors = process.communicate("\n")
    assert out == "agent ends\n"
    assert errors == "kernel_pytorch.jobs.rank: the agent that started this rank is dead\n"
    assert not (tmp_path / "was run").exists()
