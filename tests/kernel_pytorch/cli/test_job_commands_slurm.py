"""``kernel-pytorch`` and SLURMClusterManager on a real cluster."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.cluster.slurm.cluster import SlurmCluster

from kernel_pytorch.distributed_scale import JobState, SLURMClusterManager
from kernel_pytorch.jobs.folder import JobFolder

PATIENCE_S = 180


class Shell:
    """A login shell of the cluster."""

    def __init__(self, cluster: SlurmCluster, root: Path) -> None:
        self.environment = {**cluster.environment(), "KERNEL_PYTORCH_JOBS": str(root)}

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What ``kernel-pytorch`` prints."""
        command = [sys.executable, "-m", "kernel_pytorch.cli", *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == status, done.stderr
        return done.stdout


@pytest.fixture
def shell(slurm_cluster: SlurmCluster, tmp_path: Path) -> Shell:
    return Shell(slurm_cluster, tmp_path / "jobs")


def test_two_shells_see_one_job_from_submit_to_cancel(
    shell: Shell, slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    submitted = json.loads(
        shell("submit", "--to=slurm", "--nodes=2", "--json", "--", "sh", "-c", "echo ready; exec sleep 600")
    )
    id, native_id = submitted["job_id"], submitted["native_id"]
    assert shell("list").splitlines()[1].startswith(id)
    other = Shell(slurm_cluster, tmp_path / "jobs")
    with subprocess.Popen(
        [sys.executable, "-m", "kernel_pytorch.cli", "logs", native_id, "--follow"],
        env=other.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as logs:
        assert logs.stdout is not None
        assert sorted(logs.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
        status = json.loads(other("status", native_id, "--json"))
        assert (status["job_id"], status["state"], status["native_state"]) == (id, "running", "RUNNING")
        assert status["allocated_nodes"] == ["n1", "n2"]
        for name, value in shell.environment.items():
            monkeypatch.setenv(name, value)
        manager = SLURMClusterManager()
        assert list(manager.active_jobs) == [id]
        assert len(manager.get_cluster_info()["nodes"]) == 4
        assert other("cancel", id[:4]) == f"{id}: cancelled\n"
        assert logs.wait(PATIENCE_S) == 0
    assert manager.get_job_status(id).state is JobState.CANCELLED
    assert manager.active_jobs == {}
    assert slurm_cluster.run("squeue", "-h", "-o", "%i").split() == []


def test_follow_exits_as_the_job_does(shell: Shell):
    out = shell("submit", "--to", "slurm", "--follow", "--", "sh", "-c", "echo no; exit 2", status=1)
    assert "[0] no" in out


WRITE = (
    'echo "$SLURM_ARRAY_TASK_ID $KEY $PW $TOKEN $3" > "$1$SLURM_ARRAY_TASK_ID"; '
    'until [ -e "$2" ]; do sleep 0.05; done'
)


def test_an_array_whose_secrets_nobody_sees(shell: Shell, slurm_cluster: SlurmCluster, tmp_path: Path):
    """The rank of each index gets them; ``job.json`` has what ``--env`` sets, and nothing has a secret."""
    key, password, token = "k3y-3f9a17", "pw-77d0c2", "t0k3n-b1e5a8"
    shell.environment["OF_THE_SHELL"] = key
    (tmp_path / "pw").write_text(password)
    given = ["--secret=KEY=env:OF_THE_SHELL", f"--secret=PW=file:{tmp_path}/pw", f"--env=TOKEN={token}"]
    out, go = tmp_path / "out-", tmp_path / "go"
    command = ["sh", "-c", WRITE, "sh", str(out), str(go), "a  'b'"]
    seen = [shell("submit", "--to=slurm", "--array=3,7", *given, "--", *command)]
    folders = [JobFolder(path.parent) for path in sorted((tmp_path / "jobs").glob("*/job.json"))]
    assert [folder.id.rpartition("-")[2] for folder in folders] == ["3", "7"]
    for index in "37":
        path = Path(f"{out}{index}")
        until(lambda path=path: path.exists() and path.read_text(), f"rank of index {index}")
        assert path.read_text() == f"{index} {key} {password} {token} a  'b'\n"

    seen += [slurm_cluster.run("squeue", "--format=%all"), slurm_cluster.run("squeue", "--steps")]
    for folder in folders:
        id = (folder.native() or {})["native_id"]
        seen.append(slurm_cluster.run("scontrol", "show", "job", "-dd", id))
        seen.append(slurm_cluster.run("scontrol", "write", "batch_script", id, "-"))
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            seen.append((process / "cmdline").read_text(errors="replace"))
    assert sum(WRITE in text for text in seen) >= 2  # the ranks are among them
    go.touch()
    until(lambda: all(folder.ended() for folder in folders), "end")
    assert {(folder.ended() or {})["state"] for folder in folders} == {"completed"}

    for path in (path for folder in folders for path in folder.path.rglob("*") if path.is_file()):
        if path.name == "job.json":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        seen.append(path.read_text().replace(token, "" if path.name == "job.json" else token))
    assert not any(value in text for value in (key, password, token) for text in seen)


def until(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


def test_mistakes_are_refused_before_submission(shell: Shell, tmp_path: Path):
    for option in ("--partition=gpux", "--nodes=5", "--gpus-per-node=3"):
        shell("submit", "--to", "slurm", option, "--", "true", status=2)
    assert shell("list") == "no jobs\n"
