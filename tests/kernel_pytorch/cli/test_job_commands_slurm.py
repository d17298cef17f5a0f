"""``kernel-pytorch`` and SLURMClusterManager on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cluster.slurm.cluster import SlurmCluster

from kernel_pytorch.distributed_scale import JobState, SLURMClusterManager

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


def test_mistakes_are_refused_before_submission(shell: Shell, tmp_path: Path):
    for option in ("--partition=gpux", "--nodes=5", "--gpus-per-node=3"):
        shell("submit", "--to", "slurm", option, "--", "true", status=2)
    assert shell("list") == "no jobs\n"
