"""The commands about jobs: on folders made here, and on real jobs of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import pytest

from kernel_pytorch.cli import main
from kernel_pytorch.cli.jobs.output import event_line, moment, status_lines, submitted_lines, table
from kernel_pytorch.jobs.facts import JobState, JobStatus
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.manage import Jobs, Submitted

PATIENCE_S = 120


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all jobs; those that still run are ended."""
    root = tmp_path / "jobs"
    monkeypatch.setenv("KERNEL_PYTORCH_JOBS", str(root))
    yield root
    jobs = Jobs(root)
    for status in jobs.list():
        jobs.cancel(status.job_id)


def made(root: Path, id: str, *, end: str | None = "completed", at: float = 1e9) -> JobFolder:
    """A job of this machine that ran."""
    job = {"id": id, "name": id, "target": "local", "argv": ["x"], "cwd": "/", "spec": {"world_size": 2}}
    folder = JobFolder.create(root, {**job, "submitted_at": at})
    folder.write_native("local", f"{socket.gethostname()}-1-{at:.0f}")
    attempt = folder.claim_attempt({"nodes": ["node-0", "node-1"], "native": "1"})
    folder.event("attempt", "attempt 1 on\nnode-0", attempt=attempt)
    folder.write_record(attempt, 0, {"saved": [{"step": 40, "seconds": 1.0}], "step": 40})
    logs = folder.path / "logs" / "attempt-1"
    logs.mkdir()
    (logs / "rank-0.log").write_text("zero\n")
    (logs / "rank-1.log").write_text("one\n")
    if end is not None:
        folder.end(end, "why it ended", step=41, attempt=attempt)
    return folder


def test_unknown_is_shown_as_unknown():
    lines = list(status_lines(JobStatus("a-1")))
    assert lines[0] == "a-1: unknown"
    names = ["cluster's id", "attempt", "step", "last checkpoint", "restarts", "steps lost", "nodes"]
    assert lines[1:] == [f"  {name:<16}unknown" for name in (*names, "started", "as of")]


def test_all_that_is_known_is_shown():
    status = JobStatus(
        "a-1",
        JobState.FAILED,
        1e9,
        2e9,
        ["n1", "n2"],
        16,
        error_message="rank 1: ValueError:\n no",
        restart_count=0,
        last_checkpoint=0,
        native_id="17",
        native_state="NODE_FAIL",
        reason="node n2 is lost",
        attempt=2,
        step=0,
        steps_lost=0,
        as_of=3e9,
    )
    assert list(status_lines(status)) == [
        "a-1: failed (NODE_FAIL)",
        "  cluster's id    17",
        "  attempt         2",
        "  step            0",
        "  last checkpoint step 0",
        "  restarts        0",
        "  steps lost      0",
        "  nodes           n1 n2, 16 GPUs",
        f"  started         {moment(1e9)}",
        f"  ended           {moment(2e9)}",
        "  reason          node n2 is lost",
        "  error           rank 1: ValueError: no",
        f"  as of           {moment(3e9)}",
    ]


def test_a_table_is_aligned():
    long = JobStatus(
        "books-7f3a", JobState.RUNNING, 1e9, None, ["n1"], step=8, attempt=1, native_state="RUNNING"
    )
    assert list(table([long, JobStatus("a-1")])) == [
        "JOB         STATE    ATTEMPT  STEP     STARTED              NODES",
        f"books-7f3a  running  1        8        {moment(1e9)}  n1",
        "a-1         unknown  unknown  unknown  unknown              unknown",
    ]


def test_what_was_submitted():
    plan = {
        "checkpoint_every_why": "600 s: as asked; no save was measured yet",
        "lead_why": "60 s: assumed",
        "restarts": 3,
        "restarts_why": "max_retries",
    }
    jobs = [
        Submitted(
            job_id=f"a-{index}",
            folder=Path(f"/jobs/a-{index}"),
            native_id=f"17_{index}",
            rendered="",
            plan=plan,
            notes=["slow"],
            estimated_start_time=1e9,
        )
        for index in range(2)
    ]
    assert list(submitted_lines(jobs, "slurm")) == [
        "a-0: submitted to slurm as 17_0",
        "  folder  /jobs/a-0",
        "a-1: submitted to slurm as 17_1",
        "  folder  /jobs/a-1",
        "  plan    checkpoint every 600 s (as asked; no save was measured yet), "
        "asked to stop 60 s before the end (assumed), 3 restarts (max_retries)",
        "  note    slow",
        f"  starts  {moment(1e9)}, as the cluster estimates",
        "  logs    kernel-pytorch logs a-0 --follow",
    ]


def test_an_event_is_a_line():
    event = {"at": 1e9, "attempt": 3, "kind": "restart", "text": "rank 0\nreturned 3"}
    assert event_line(event) == f"{moment(1e9)}  attempt 3   restart: rank 0 returned 3"
    assert event_line({"kind": "note", "text": "x"}) == "unknown              note: x"


def test_status_and_list(root: Path, capsys):
    made(root, "wiki-0001", end="failed", at=2e9)
    made(root, "books-7f3a")
    assert main(["status", "boo"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("books-7f3a: completed\n")
    for line in (
        "step            41",
        "last checkpoint step 40",
        "nodes           node-0 node-1",
        "reason          why",
    ):
        assert f"\n  {line}" in out
    assert main(["status", "wiki", "--json", "--job-dir", str(root)]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["job_id"], status["state"], status["step"], status["loss"]) == (
        "wiki-0001",
        "failed",
        41,
        None,
    )
    assert main(["list"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["JOB", "STATE", "ATTEMPT", "STEP", "STARTED", "NODES"]
    assert [row.split()[0] for row in rows] == ["wiki-0001", "books-7f3a"]
    assert main(["list", "--json"]) == 0
    assert [each["state"] for each in json.loads(capsys.readouterr().out)] == ["failed", "completed"]


def test_no_jobs(root: Path, tmp_path: Path, capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "no jobs\n"
    assert main(["list", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert not root.exists()
    for command in ("status", "logs", "events", "cancel", "requeue"):
        assert main([command, "books"]) == 2
        line = f"kernel-pytorch {command}: error: no job 'books': {root} has no jobs\n"
        assert capsys.readouterr() == ("", line)


def test_a_mistaken_id_names_the_nearest(root: Path, capsys):
    made(root, "books-7f3a")
    assert main(["status", "bokos-7f3a"]) == 2
    assert capsys.readouterr().err.endswith("did you mean books-7f3a?\n")


def test_logs_and_events(root: Path, capsys):
    made(root, "books-7f3a")
    for options, expected in {
        (): ["[0] zero", "[1] one"],
        ("--rank", "1"): ["one"],
        ("--follow",): ["[0] zero", "[1] one"],
    }.items():
        assert main(["logs", "books", *options]) == 0
        assert capsys.readouterr().out.splitlines() == expected
    assert main(["logs", "books", "--rank", "2"]) == 2
    assert "rank must be one of the 2 of books-7f3a" in capsys.readouterr().err
    assert main(["logs", "books", "--rank", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"line": "zero"}
    assert main(["events", "books", "--follow"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("  attempt 1   attempt: attempt 1 on node-0")
    assert main(["events", "books", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "attempt"


def test_a_job_that_has_ended_is_not_cancelled(root: Path, capsys):
    made(root, "books-7f3a")
    assert main(["cancel", "books"]) == 1
    line = "kernel-pytorch cancel: error: books-7f3a was not cancelled; its state: completed\n"
    assert capsys.readouterr() == ("", line)


def test_status_and_list_load_neither_torch_nor_msgspec(root: Path):
    made(root, "books-7f3a")
    made(root, "wiki-0001", end=None)
    script = (
        "import sys; from kernel_pytorch.cli import main; main(['status', 'books']); main(['list']); "
        "print([name for name in ('torch', 'msgspec', 'yaml', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "kernel_pytorch.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_job_from_submit_to_its_end(root: Path):
    with started(
        "submit", "--nodes", "2", "--follow", "--", "sh", "-c", 'echo "rank $RANK: $0"', "$(a b);'"
    ) as job:
        out, err = job.communicate(timeout=PATIENCE_S)
    head, folder, plan, logs, *lines = out.splitlines()
    id = head.partition(":")[0]
    assert (job.returncode, err) == (0, f"{id}: completed, all ranks returned 0\n")
    assert folder.split() == ["folder", str(root / id)]
    assert "checkpoint every 1800 s (the default" in plan
    assert "asked to stop 60 s before the end (assumed" in plan
    assert plan.endswith("3 restarts (max_retries, in each attempt)")
    assert logs.strip() == f"logs    kernel-pytorch logs {id} --follow"
    assert sorted(lines) == ["[0] rank 0: $(a b);'", "[1] rank 1: $(a b);'"]
    with started("requeue", id, "--json") as again:
        out, err = again.communicate(timeout=PATIENCE_S)
    native_id = json.loads(out)["native_id"]
    assert (again.returncode, err) == (0, "")
    status = Jobs(root).wait(native_id)
    assert (status.job_id, status.state, status.attempt) == (id, JobState.COMPLETED, 2)


def test_follow_exits_as_the_job_does(root: Path):
    with started("submit", "--json", "--follow", "--", "sh", "-c", "echo no; exit 2") as job:
        out, err = job.communicate(timeout=PATIENCE_S)
    submitted, *lines, status = map(json.loads, out.splitlines())
    assert (job.returncode, err, lines[0]) == (1, "", {"line": "[0] no"})
    assert submitted["job_id"] == status["job_id"]
    assert (status["state"], status["reason"].split(";")[0]) == ("failed", "rank 0: bad usage")


def test_ctrl_c_leaves_the_job_and_cancel_ends_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    key, outer = token_hex(8), token_hex(8)
    (tmp_path / "key").write_text(key)
    monkeypatch.setenv("OUTER", outer)
    secrets = ["--secret", f"KEY=file:{tmp_path / 'key'}", "--secret", "OTHER=env:OUTER"]
    script = 'printf %s "$KEY$OTHER" | sha256sum; echo ready; exec sleep 600'
    digest = hashlib.sha256((key + outer).encode()).hexdigest()
    with started("submit", "--follow", *secrets, "--", "sh", "-c", script) as following:
        assert following.stdout is not None
        id = following.stdout.readline().partition(":")[0]
        printed = []
        while "ready" not in (line := following.stdout.readline()):
            assert line, "no log came"
            printed.append(line)
        assert printed[-1] == f"[0] {digest}  -\n"
        assert [word for word in (key, outer) if word in written(root, *printed)] == []
        assert digest in written(root)
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 130
    assert err == f"{id} goes on: kernel-pytorch cancel {id} ends it\nkernel-pytorch submit: interrupted\n"
    with started("logs", id, "--follow", "--rank", "0") as logs:
        assert logs.stdout is not None
        assert [logs.stdout.readline() for _ in range(2)][1] == "ready\n"
        logs.send_signal(signal.SIGINT)
        assert logs.wait(PATIENCE_S) == 0
    assert Jobs(root).status(id).state is JobState.RUNNING
    with started("logs", id, "--follow") as logs:
        assert main(["cancel", id[:2]]) == 0
        assert capsys.readouterr().out == f"{id}: cancelled\n"
        assert logs.communicate(timeout=PATIENCE_S) == (f"[0] {digest}  -\n[0] ready\n", "")
    assert logs.returncode == 0
    assert not processes_of(root / id)


def written(folder: Path, *printed: str) -> str:
    """All files of the jobs, all command lines of this machine, and what was printed."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    found = list(printed)
    for path in [*paths, *Path("/proc").glob("[0-9]*/cmdline")]:
        with suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


def processes_of(folder: Path) -> list[str]:
    """Processes that have the folder's path in their environment or command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            said = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in said and path.name != str(os.getpid()):
            found.append(path.name)
    return found
