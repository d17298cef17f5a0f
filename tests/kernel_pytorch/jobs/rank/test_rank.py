"""What a training loop calls: in a job, outside one, and when it is asked to stop."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kernel_pytorch.jobs import rank
from kernel_pytorch.jobs.folder import JobFolder, JobFolderError
from kernel_pytorch.jobs.rank.beats import Beats


def test_outside_a_job_nothing_is_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KERNEL_PYTORCH_JOB", raising=False)
    rank.current.cache_clear()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    hook = sys.excepthook
    for name in ("open", "stat", "mkdir", "write"):
        monkeypatch.setattr(os, name, None)  # calling it is an error
    job = rank.current()
    job.handle_signals()
    job.beat(1, "any")
    assert job.must_stop() is False
    assert job.newest() is True
    job.saved(1, 0.5)
    job.left()
    job.failed(ValueError())
    assert (job.id, job.attempt, job.checkpoint_every_s) == (None, None, None)
    assert job is rank.current()
    monkeypatch.undo()
    assert handlers == {number: signal.getsignal(number) for number in signal.valid_signals()}
    assert sys.excepthook is hook


def test_in_a_job(folder: JobFolder, in_job: Path):
    job = rank.current()
    assert job is rank.current()
    assert (job.id, job.attempt, job.checkpoint_every_s) == (folder.id, 1, 600.0)
    assert Beats(in_job).read()[1].phase == "starting"
    job.beat(7, "saving")
    assert Beats(in_job).read()[1].phase == "saving"
    job.saved(7, 1.5)
    beat = Beats(in_job).read()[1]
    assert (beat.step, beat.phase, beat.save_s, beat.save_step) == (7, "training", 1.5, 7)
    assert (beat.rank, beat.pid) == (3, os.getpid())
    assert folder.records(1) == {3: {"saved": [{"step": 7, "seconds": 1.5}], "restart": 2}}
    job.saved(9, 2.5)
    job.left()
    saves = [{"step": 7, "seconds": 1.5}, {"step": 9, "seconds": 2.5}]
    assert folder.records(1) == {3: {"saved": saves, "left": 7, "pid": os.getpid(), "restart": 2}}
    assert Beats(in_job).read()[1].phase == "left"
    job.left(9)
    assert folder.record(1, 3)["left"] == 9


def test_saves_of_before_a_restart_are_kept_and_the_list_is_bounded(folder: JobFolder, in_job: Path):
    folder.write_record(1, 3, {"saved": [{"step": 0, "seconds": 1.0}], "error": "crash", "restart": 1})
    rank.current().saved(1, 1.0)
    saves = [{"step": 0, "seconds": 1.0}, {"step": 1, "seconds": 1.0}]
    assert folder.record(1, 3) == {"saved": saves, "restart": 2}
    for step in range(2, 102):
        rank.current().saved(step, 1.0)
    assert [save["step"] for save in folder.record(1, 3)["saved"]] == list(range(2, 102))


def test_only_the_newest_attempt_may_write(folder: JobFolder, in_job: Path):
    job = rank.current()
    assert job.newest()
    (folder.path / "attempts" / ".2.json.0a1b").touch()  # of a claim that was killed
    assert job.newest()
    assert folder.claim_attempt({}) == 2
    assert not job.newest()


def test_when_the_folder_is_gone_no_attempt_may_write(folder: JobFolder, in_job: Path):
    job = rank.current()
    folder.path.rename(folder.path.with_name("elsewhere"))
    with pytest.raises(JobFolderError, match=r"attempts cannot be read: the folder .* has vanished"):
        job.newest()
    with pytest.raises(JobFolderError, match=r"the folder .* has vanished"):
        job.left(1)


def test_the_stop_file_is_looked_for_ten_times_a_second(in_job: Path, monkeypatch: pytest.MonkeyPatch):
    now = time.monotonic()
    monkeypatch.setattr(rank, "monotonic", lambda: now)
    job, looks = rank.current(), []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **options: looks.append(path) or stat(path))
    assert not any(job.must_stop() for _ in range(1000))
    assert looks == [in_job / "stop"]
    Beats(in_job).ask_to_stop()
    assert not job.must_stop()
    now += 0.11
    assert job.must_stop()
    assert len(looks) == 2
    (in_job / "stop").unlink()
    now += 0.11
    assert job.must_stop()  # once asked, asked for good
    assert len(looks) == 2


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("RANK", None, "KERNEL_PYTORCH_JOB is set, but RANK is not: start ranks by kernel-pytorch submit"),
        ("KERNEL_PYTORCH_ATTEMPT", "two", "KERNEL_PYTORCH_ATTEMPT must be a number, got 'two'"),
        ("KERNEL_PYTORCH_CHECKPOINT_EVERY", "10m", "must be a number of seconds, got '10m'"),
        ("KERNEL_PYTORCH_BEATS", None, "KERNEL_PYTORCH_BEATS is not: start"),
        ("KERNEL_PYTORCH_BEATS", "/gone", "/gone/rank-1 cannot be written: the folder /gone has vanished"),
    ],
)
def test_an_environment_that_is_not_a_jobs(
    in_job: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, line: str
):
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(JobFolderError, match=line):
        rank.current()


LOOP = """
import time
from kernel_pytorch.jobs import rank
job = rank.current()
job.handle_signals()
print("ready", flush=True)
while not job.must_stop():
    time.sleep(0.005)
print("asked", flush=True)
while True:
    print(input(), job.must_stop(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_to_stop_however_often_it_comes(in_job: Path, number: signal.Signals):
    with subprocess.Popen(
        [sys.executable, "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stdout.readline() == "asked\n"
            for again in (number, signal.SIGTERM, signal.SIGUSR1, number):
                process.send_signal(again)
                process.stdin.write("alive\n")
                process.stdin.flush()
                assert process.stdout.readline() == "alive True\n"
        finally:
            process.kill()


def test_a_rank_that_has_left_is_not_ended_by_the_next_request(in_job: Path):
    """A handler would not do: Python gives signals back their defaults before it ends."""
    script = (
        "import signal\nfrom kernel_pytorch.jobs import rank\njob = rank.current()\n"
        "job.left(3)\nprint(*map(signal.getsignal, (signal.SIGTERM, signal.SIGUSR1)))\n"
        "job.handle_signals()\njob.left(3)\n"
        "print(*map(signal.getsignal, (signal.SIGTERM, signal.SIGUSR1)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{signal.SIG_DFL!s} {signal.SIG_DFL!s}\n{signal.SIG_IGN!s} {signal.SIG_IGN!s}\n"


def test_the_second_ctrl_c_on_a_terminal_quits(in_job: Path):
    terminal, theirs = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-c", LOOP]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = threading.Timer(60, process.kill)  # a line that never comes fails the test
        deadline.start()
        try:
            assert process.stdout.readline() == "ready\n"
            os.write(terminal, b"\x03")
            assert process.stdout.readline() == "asked\n"
            os.write(terminal, b"\x03")
            out, errors = process.communicate(timeout=60)
        finally:
            deadline.cancel()
            process.kill()
            os.close(terminal)
            os.close(theirs)
    assert (process.returncode, out) == (-signal.SIGINT, "")
    assert errors.endswith("KeyboardInterrupt\n")


def test_a_ctrl_c_that_is_ignored_stays_ignored(in_job: Path):
    script = (
        "import signal\nfrom kernel_pytorch.jobs import rank\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "rank.current().handle_signals()\nprint(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_what_ends_a_rank_is_recorded_without_its_secrets(
    folder: JobFolder, in_job: Path, monkeypatch: pytest.MonkeyPatch
):
    folder.write_job({"argv": [], "secrets": {"TOKEN": "file:/dev/null"}})
    monkeypatch.setenv("TOKEN", "hunter2")
    script = (
        "import os\nfrom kernel_pytorch.jobs import rank\n"
        "job = rank.current()\njob.saved(5, 0.5)\njob.beat(6)\n"
        "class OutOfMemoryError(RuntimeError): pass\n"
        "def train():\n    raise OutOfMemoryError('refused: ' + os.environ['TOKEN'])\ntrain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "hunter2" in done.stderr  # the process's own, as ever
    record = folder.record(1, 3)
    trace = record.pop("traceback")
    assert record.pop("pid") > 0
    assert record == {
        "saved": [{"step": 5, "seconds": 0.5}],
        "error": "refused: (TOKEN)",
        "type": "OutOfMemoryError",
        "step": 6,
        "restart": 2,
    }
    assert "in train\n" in trace
    assert trace.endswith("OutOfMemoryError: refused: (TOKEN)\n")
    assert not any(b"hunter2" in path.read_bytes() for path in folder.path.rglob("*") if path.is_file())


def test_an_error_that_the_program_reports_itself_is_recorded(folder: JobFolder, in_job: Path):
    rank.current().beat(4)
    try:
        raise FileNotFoundError("no text")
    except OSError as error:
        rank.current().failed(error)
    record = folder.record(1, 3)
    assert (record["type"], record["error"], record["step"]) == ("FileNotFoundError", "no text", 4)
    assert "in test_an_error" in record["traceback"]


def test_what_might_have_secrets_is_not_recorded(folder: JobFolder, in_job: Path):
    (folder.path / "job.json").unlink()
    script = "from kernel_pytorch.jobs import rank\nrank.current()\nraise RuntimeError('hunter2')"
    subprocess.run([sys.executable, "-c", script], capture_output=True)
    record = folder.record(1, 3)
    assert (record["type"], record["traceback"]) == ("RuntimeError", "")
    assert record["error"] == "(not written, as job.json, which names the secrets, cannot be read)"


def test_a_child_of_a_rank_records_nothing(folder: JobFolder, in_job: Path):
    script = (
        "import os, sys\nfrom kernel_pytorch.jobs import rank\nrank.current()\n"
        "if os.fork(): os.wait()\nelse: raise RuntimeError('of the child')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "RuntimeError: of the child" in done.stderr
    assert folder.records(1) == {}
