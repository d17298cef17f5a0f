from __future__ import annotations

from pathlib import Path

import pytest

from kernel_pytorch.distributed_scale import (
    ClusterUnavailableError,
    FailureType,
    FaultToleranceManager,
    JobNotFoundError,
    JobState,
    ResourceRequirement,
    SLURMClusterManager,
    TrainingJobSpec,
    create_slurm_manager,
)
from kernel_pytorch.errors import Unavailable
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.status import ClusterWord

RESOURCES = ResourceRequirement(16, None, 32, 512.0)
SPEC = TrainingJobSpec(None, "books", None, ["longnet", "train"], RESOURCES, 16, nodes=(2, 2))


class Slurm:
    """Slurm as a target, made up: it acknowledges all, and has the states that it is told."""

    name = "slurm"

    def __init__(self) -> None:
        self.specs: list[TrainingJobSpec] = []
        self.requeued: list[tuple[str, tuple[str, ...]]] = []
        self.states: dict[str, str] = {}
        self.away = False
        self.array: tuple[int, ...] | None = None

    def check(self, spec, plan):
        return ["a note"]

    def render(self, spec, folder, job):
        self.specs.append(spec)
        return "#!/bin/sh\n"

    def indices(self, spec):
        return self.array

    def submit(self, spec, folders, *, inherit_env):
        if self.away:
            raise ClusterUnavailableError("sbatch is not there", "log in on the cluster")
        return [str(17 + number) for number, _ in enumerate(folders)]

    def words(self, folders, patience_s=30.0):
        if self.away:
            raise ClusterUnavailableError("squeue is not there")
        known = {folder.id: self.states.get(folder.id, "PENDING") for folder in folders}
        states = {"PENDING": JobState.PENDING, "RUNNING": JobState.RUNNING, "FAILED": JobState.FAILED}
        return {
            id: ClusterWord(as_of=1e9, native_state=word, state=states[word]) for id, word in known.items()
        }

    def cancel(self, folder):
        self.states[folder.id] = "CANCELLED"

    def requeue(self, folder, exclude=()):
        self.requeued.append((folder.id, tuple(exclude)))
        return "17"

    def estimated_start(self, folder):
        return 2e9


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    slurm = Slurm()
    monkeypatch.setenv("KERNEL_PYTORCH_JOBS", str(tmp_path / "jobs"))
    for module in ("manage", "one_target"):
        monkeypatch.setattr(f"kernel_pytorch.jobs.{module}.target_named", lambda name: slurm)
    return slurm


def test_a_job_is_submitted(slurm: Slurm, tmp_path: Path):
    answer = SLURMClusterManager().submit_job(SPEC)
    id = answer["job_id"]
    assert (answer["success"], answer["native_id"], answer["dry_run"]) == (True, "17", False)
    assert (answer["rendered"], answer["estimated_start_time"]) == ("#!/bin/sh\n", 2e9)
    assert answer["allocated_resources"] == {
        "nodes": (2, 2),
        "ranks_per_node": 8,
        "gpus_per_node": 8,
        "cpu_cores": 32,
        "memory_gb": 512.0,
    }
    assert (answer["notes"], answer["job_ids"]) == (["a note"], [id])
    assert JobFolder(tmp_path / "jobs" / id).native()["native_id"] == "17"


def test_a_dry_run_is_no_success_and_touches_nothing(slurm: Slurm, tmp_path: Path):
    slurm.away = True
    answer = create_slurm_manager().submit_job(SPEC, dry_run=True)
    assert (answer["success"], answer["native_id"], answer["dry_run"]) == (False, None, True)
    assert answer["rendered"] == "#!/bin/sh\n"
    assert not (tmp_path / "jobs").exists()


def test_without_a_cluster_it_fails_and_leaves_nothing(slurm: Slurm):
    slurm.away = True
    manager = create_slurm_manager()
    with pytest.raises(ClusterUnavailableError, match="sbatch is not there: log in on the cluster"):
        manager.submit_job(SPEC)
    assert manager.list_jobs() == []


def test_of_an_array_all_ids_are_given(slurm: Slurm):
    slurm.array = (0, 3)
    answer = create_slurm_manager().submit_job(SPEC)
    first, second = answer["job_ids"]
    assert (answer["job_id"], first[-2:], second[-2:]) == (first, "-0", "-3")


def test_defaults_apply_where_the_job_sets_nothing(slurm: Slurm):
    own = SPEC.with_options(max_runtime_hours=3, options={"slurm": {"partition": "cpu", "qos": "high"}})
    for manager, spec, hours, options in (
        (SLURMClusterManager(), SPEC, 24, {}),
        (SLURMClusterManager("gpu", account="me"), SPEC, 24, {"partition": "gpu", "account": "me"}),
        (SLURMClusterManager(default_partition="gpu"), SPEC, 24, {"partition": "gpu"}),
        (create_slurm_manager("gpu"), own, 3, {"partition": "cpu", "qos": "high"}),
        (SLURMClusterManager(default_time_limit="1-12:00:00"), SPEC, 36, {}),
        (SLURMClusterManager(default_time_limit="02:00:00"), own, 3, {"partition": "cpu", "qos": "high"}),
    ):
        manager.submit_job(spec, dry_run=True)
        assert slurm.specs[-1].max_runtime_hours == hours
        assert slurm.specs[-1].options.get("slurm", {}) == options


def test_mistakes_of_whoever_makes_a_manager():
    with pytest.raises(ValueError, match="default_partition is an older name of partition"):
        SLURMClusterManager("a", "b")
    with pytest.raises(ValueError, match="time must be such as"):
        SLURMClusterManager(default_time_limit="soon")


def test_jobs_are_those_on_slurm_by_either_id(slurm: Slurm, tmp_path: Path):
    manager = create_slurm_manager()
    id = manager.submit_job(SPEC)["job_id"]
    other = {"id": "here-1", "name": "here", "target": "local", "argv": ["x"], "cwd": "/", "submitted_at": 0}
    JobFolder.create(tmp_path / "jobs", other).end("completed", "done")
    (tmp_path / "jobs" / "broken-1").mkdir()
    (tmp_path / "jobs" / "broken-1" / "job.json").write_text("{")
    assert [status.job_id for status in manager.list_jobs()] == [id]
    assert manager.get_job_status("17").native_state == "PENDING"
    assert list(manager.active_jobs) == [id]
    slurm.states[id] = "RUNNING"
    assert manager.active_jobs[id].state is JobState.RUNNING
    slurm.states[id] = "FAILED"
    assert manager.active_jobs == {}
    assert [event["kind"] for event in manager.events(id)] == ["submitted"]
    assert list(manager.logs("17")) == []
    with pytest.raises(JobNotFoundError, match="no job '18'"):
        manager.get_job_status("18")


def test_requeue_cancel_and_scale(slurm: Slurm):
    manager = create_slurm_manager()
    id = manager.submit_job(SPEC)["job_id"]
    assert manager.requeue_job(id, exclude=["n2"]) == "17"
    assert slurm.requeued == [(id, ("n2",))]
    with pytest.raises(
        Unavailable, match="cannot get 4 nodes: on Slurm their number is fixed: cancel it and"
    ):
        manager.scale_job(id, 4)
    with pytest.raises(JobNotFoundError):
        manager.scale_job("nothing", 4)
    assert manager.cancel_job(id) is True
    assert manager.get_job_status(id).state is JobState.CANCELLED
    other = manager.submit_job(SPEC)["job_id"]
    Jobs().folder(other).end("completed", "done")
    assert manager.cancel_job(other) is False


def test_failures_are_handled_through_it(slurm: Slurm):
    manager = create_slurm_manager()
    id = manager.submit_job(SPEC)["job_id"]
    slurm.states[id] = "FAILED"
    faults = FaultToleranceManager(manager=manager)
    info = {"node_status": {"n1": "IDLE", "n2": "DOWN*"}}
    assert faults.detect_failure(id, info) is FailureType.NODE_FAILURE
    assert faults.handle_failure(id, FailureType.NODE_FAILURE, info)["strategy"] == "requeue"
    assert slurm.requeued == [(id, ("n2",))]
    assert faults.get_failure_statistics()["recovery_rate"] == 0
    folder = Jobs().folder(id)
    folder.write_record(folder.claim_attempt({}), 0, {"saved": [{"step": 7, "seconds": 1.0}]})
    assert faults.get_failure_statistics()["recovery_rate"] == 1
