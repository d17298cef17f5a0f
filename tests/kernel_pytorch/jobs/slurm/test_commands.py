"""Slurm's commands: what they are told and what their answers mean. They are made up here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_pytorch.jobs import manage
from kernel_pytorch.jobs.facts import JobState
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.slurm import commands
from kernel_pytorch.jobs.slurm.commands import NoAnswerError, SlurmError, facts
from kernel_pytorch.jobs.slurm.words import words
from kernel_pytorch.jobs.target import ClusterUnavailableError

Made = Callable[[str, str], None]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Make a command of Slurm out of lines of shell; no other is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def made(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return made


def test_no_slurm_here(make: Made):
    with pytest.raises(
        ClusterUnavailableError, match="Slurm's squeue is not installed here: submit on a login"
    ):
        commands.queue(["1"], "T")


@pytest.mark.parametrize(
    "said",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
        "squeue: error: fetch_config: DNS SRV lookup failed\n"
        "squeue: fatal: Could not establish a configuration source",
        "squeue: error: s_p_parse_file: cannot stat file /x: No such file or directory",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "Unexpected message received for job 1",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
    ],
)
def test_no_answer(make: Made, said: str):
    make("squeue", f"echo '{said}' >&2; exit 1")
    with pytest.raises(ClusterUnavailableError, match=r"scontrol ping$") as caught:
        commands.queue(["1"], "T")
    assert "\n" not in str(caught.value)


def test_a_command_that_hangs(make: Made, tmp_path: Path):
    """A site's script around the command, which ends with what it has started."""
    make("squeue", f"/bin/sleep 60 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(NoAnswerError, match=r"squeue had no answer in 1 s: see whether slurmctld"):
        commands.run("squeue", timeout_s=1)
    ends(tmp_path / "pid")


def ends(pid: Path) -> None:
    """Wait until the process of which a file has the id has ended."""
    process = Path("/proc", pid.read_text().strip())
    until = time.monotonic() + 30
    while process.exists() and "State:\tZ" not in (process / "status").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_slurmctld_that_hangs_delays_a_status_little(
    make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is asked once for all jobs, then the folders tell what is known."""
    monkeypatch.setattr(manage, "_PATIENCE_S", 1)
    jobs = manage.Jobs(tmp_path / "jobs")
    for name in ("books-1", "books-2"):
        folder = JobFolder.create(jobs.root, {"id": name, "target": "slurm", "submitted_at": 5.0})
        folder.write_native("slurm", "7")
    make("squeue", f"echo >> {tmp_path}/asked; /bin/sleep 600 & echo $! > {tmp_path}/pid; wait")
    told = "the cluster could not be asked; this is what the job's folder has"
    assert [status.reason for status in jobs.list()] == [told] * 2
    assert (tmp_path / "asked").read_text() == "\n"
    ends(tmp_path / "pid")
    assert jobs.status("books-1").state is JobState.PENDING


@pytest.mark.parametrize(
    ("said", "may_be_done"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", False),
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Batch job submission failed: Zero Bytes were transmitted or received", True),
    ],
)
def test_whether_a_request_may_have_been_carried_out(make: Made, said: str, may_be_done: bool):
    make("sbatch", f"echo 'sbatch: error: {said}' >&2; exit 1")
    with pytest.raises(ClusterUnavailableError) as caught:
        commands.run("sbatch")
    assert isinstance(caught.value, NoAnswerError) is may_be_done


def test_a_refusal_is_one_line_in_slurms_words(make: Made):
    make("sbatch", "echo 'sbatch: error: no\nsbatch: error: no\nallocation failure: never' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"^sbatch: no; allocation failure: never$"):
        commands.run("sbatch")
    make("sbatch", "exit 3")
    with pytest.raises(SlurmError, match=r"^sbatch ended with 3$"):
        commands.run("sbatch")


def test_questions_do_not_depend_on_the_users_settings(make: Made, monkeypatch: pytest.MonkeyPatch):
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SACCT_FORMAT", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("LC_ALL", "de_DE")
    make("squeue", "/usr/bin/env")
    found = dict(line.partition("=")[::2] for line in commands.run("squeue").splitlines())
    told = {name: value for name, value in found.items() if re.match("S[A-Z]+_(?!CERT)|LC_", name)}
    assert told == {"SLURM_CONF": "/etc/slurm.conf", "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}


def test_a_submission_keeps_what_the_user_exports(monkeypatch: pytest.MonkeyPatch):
    kept = {"SBATCH_ACCOUNT": "a", "SLURM_CONF": "c", "LC_ALL": "de_DE", "SLURMX": "1", "MY_SLURM_VAR": "2"}
    dropped = ("SBATCH_PARTITION", "SBATCH_REQUEUE", "SLURM_JOB_ID", "SRUN_CPUS_PER_TASK", "SLURM_EXPORT_ENV")
    for name, value in {**kept, **dict.fromkeys(dropped, "x")}.items():
        monkeypatch.setenv(name, value)
    found = commands.of_submission(["partition"])
    assert {name: found.get(name) for name in kept} == kept
    assert not found.keys() & set(dropped)


SHOW = (
    "JobId=7 JobName=x JobState=FAILED UserId=me UserId=me(1000) GroupId=me(1000) Priority=1 "
    "JobState=RUNNING Reason=None Restarts=2 Command=/a b/script.sh Power="
)


def test_a_jobs_name_is_not_taken_for_facts(make: Made):
    make("scontrol", f"echo '{SHOW.replace(' UserId=me ', ' ')}'")
    job = commands.show_job("7")
    assert job is not None
    assert (job["JobState"], job["Restarts"], job["Command"], job["Power"]) == (
        "RUNNING",
        "2",
        "/a b/script.sh",
        "",
    )


def test_facts_with_blanks_in_their_values():
    line = "NodeName=n1 OS=Linux 6.1 #1 SMP  Gres=gpu:a100:4(S:0-1) AllocTRES= Reason=bad = fan [me@now] "
    assert facts(line) == {
        "NodeName": "n1",
        "OS": "Linux 6.1 #1 SMP",
        "Gres": "gpu:a100:4(S:0-1)",
        "AllocTRES": "",
        "Reason": "bad = fan [me@now]",
    }


def test_a_job_that_only_scontrol_knows(make: Made):
    make("squeue", "exit 0")
    make("scontrol", f"echo '{SHOW.replace('RUNNING', 'CANCELLED')} EndTime=1700000000'")
    word = words(["7"])["7"]
    assert (word.native_state, word.end_time) == ("CANCELLED", 1700000000)


def test_a_job_that_only_the_accounts_have(make: Made):
    gone = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    make("squeue", gone)
    make("scontrol", f'case "$*" in *hostnames*) echo n1; echo n2;; *) {gone};; esac')
    make("sacct", "printf 'CANCELLED by 1000\\0371700000000\\0371700000060\\037n[1-2]\\n'")
    word = words(["7"])["7"]
    assert (word.native_state, word.nodes) == ("CANCELLED by 1000", ["n1", "n2"])
    assert (word.start_time, word.end_time) == (1700000000, 1700000060)
    make("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert words(["7"])["7"].native_state is None
    make("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ClusterUnavailableError):  # not: gone
        words(["7"])


def test_hostnames_that_need_no_command(make: Made):
    assert [commands.hostnames(text) for text in ("n1", "", "(null)", "None assigned")] == [
        ["n1"],
        [],
        [],
        [],
    ]
