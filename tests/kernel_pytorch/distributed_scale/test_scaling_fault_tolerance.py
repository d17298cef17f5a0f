from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from kernel_pytorch.distributed_scale import (
    FailureType,
    FaultToleranceManager,
    JobState,
    JobStatus,
    create_fault_tolerance_manager,
)
from kernel_pytorch.errors import Unavailable

CRASH = {"exit_code": 1}


@dataclass
class Cluster:
    """A manager with one job."""

    state: JobState | None = JobState.FAILED
    step: int | None = None
    requeued: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    away: bool = False

    def get_job_status(self, job_id: str) -> JobStatus:
        if self.away:
            raise Unavailable("no cluster")
        return JobStatus(job_id, self.state, step=self.step)

    def requeue_job(self, job_id: str, exclude: tuple[str, ...] = ()) -> None:
        self.requeued.append((job_id, exclude))


@pytest.mark.parametrize(
    ("failure_type", "info", "strategy", "reason"),
    [
        (
            FailureType.SOFTWARE_FAILURE,
            CRASH,
            "restart",
            "rank 0 returned 1; restart 1 of 3; steps of at most",
        ),
        (FailureType.NODE_FAILURE, {"nodes_lost": ["n2"]}, "requeue", "node n2 is lost; requeue 1 of 20"),
        (FailureType.NODE_FAILURE, {}, "requeue", "reported as node failure; requeue 1 of 20"),
        (FailureType.OOM_FAILURE, {}, "fail", "not tried again: it needs the same memory each time"),
        (FailureType.NETWORK_FAILURE, CRASH, "restart", "reported as network failure: rank 0 returned 1"),
        (FailureType.GPU_FAILURE, {}, "requeue", "reported as gpu failure"),
        (FailureType.TIMEOUT_FAILURE, {}, "requeue", "reported as timeout failure"),
        (None, {"slurm_state": "PREEMPTED"}, "requeue", "goes on when it is run again"),
        (None, {"exit_code": 0}, "done", "all ranks returned 0"),
        (None, {}, "restart", "nothing is known about how it ended"),
    ],
)
def test_a_strategy_and_its_reason(failure_type, info, strategy, reason):
    answer = FaultToleranceManager(20).handle_failure("a", failure_type, info)
    assert list(answer) == ["strategy", "reason", "attempt", "recovered"]
    assert (answer["strategy"], answer["attempt"], answer["recovered"]) == (strategy, 1, None)
    assert reason in answer["reason"]
    again = strategy in ("restart", "requeue")
    assert ("at most 20 min are repeated; nothing was done" in answer["reason"]) is again


def test_a_job_that_crashes_at_one_step_is_given_up_after_three_times():
    manager = create_fault_tolerance_manager()
    strategies = [
        manager.handle_failure("a", FailureType.SOFTWARE_FAILURE, {**CRASH, "step": step})["strategy"]
        for step in (5, 9, 9, 9)
    ]
    assert strategies == ["restart", "restart", "restart", "fail"]
    assert manager.handle_failure("b", FailureType.SOFTWARE_FAILURE, CRASH)["attempt"] == 1


def test_it_acts_only_through_its_manager():
    cluster = Cluster()
    manager = FaultToleranceManager(manager=cluster)
    manager.update_node_health("n9", "failed")
    manager.update_node_health("n8", "degraded")
    answer = manager.handle_failure("a", FailureType.NODE_FAILURE, {"nodes_lost": ["n2"]})
    assert answer["reason"].endswith("the job was requeued")
    manager.handle_failure("a", FailureType.OOM_FAILURE, {})
    assert cluster.requeued == [("a", ("n2", "n9"))]
    cluster.state = JobState.RUNNING
    assert "own node programs restart it" in manager.handle_failure("a", None, CRASH)["reason"]
    cluster.state = None  # such as one whose supervisor was killed
    manager.handle_failure("a", None, {"exit_code": 3})
    assert cluster.requeued[1:] == [("a", ("n9", "n2"))]


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.COMPLETED])
def test_a_job_that_has_ended_otherwise_is_left_alone(state: JobState):
    cluster = Cluster(state)
    answer = FaultToleranceManager(manager=cluster).handle_failure("a", FailureType.NODE_FAILURE, {})
    assert (answer["strategy"], answer["reason"]) == ("done", f"the job is {state.value}")
    assert cluster.requeued == []


def test_recovered_is_unknown_until_a_later_step_was_seen():
    cluster = Cluster(step=20)
    manager = FaultToleranceManager(manager=cluster)

    def recovered() -> list[bool | None]:
        return [item["recovered"] for item in manager.get_recovery_report("a")["jobs"]["a"]["failures"]]

    assert (
        manager.handle_failure("a", FailureType.SOFTWARE_FAILURE, {**CRASH, "step": 25})["recovered"] is None
    )
    cluster.state = JobState.RUNNING
    for step, expected in ((None, None), (20, None), (25, None), (26, True), (20, True)):
        cluster.step = step
        assert recovered() == [expected]
    cluster.step = 40
    manager.handle_failure("a", FailureType.SOFTWARE_FAILURE, {**CRASH, "step": 30})
    assert recovered() == [True, None]  # a step that was there before proves nothing
    cluster.away = True
    assert recovered() == [True, None]
    cluster.away, cluster.step = False, 41
    assert recovered() == [True, True]


def test_a_manager_that_fails_is_not_hidden():
    cluster = Cluster(away=True)
    manager = FaultToleranceManager(manager=cluster)
    with pytest.raises(Unavailable, match="no cluster"):
        manager.handle_failure("a", FailureType.NODE_FAILURE, {})
    assert manager.get_failure_statistics()["total_failures"] == 0


def test_nodes():
    manager = FaultToleranceManager()
    for node, health in {"n3": 1.0, "n1": "healthy", "n2": 0.5, "n4": None, "n5": True}.items():
        manager.update_node_health(node, health)
    assert manager.get_healthy_nodes() == ["n1", "n3", "n5"]
    manager.handle_failure("a", FailureType.NODE_FAILURE, {"nodes_lost": ["n3"]})
    assert manager.get_healthy_nodes() == ["n1", "n5"]
    assert manager.get_recovery_report()["nodes"] == {
        "n3": "failed",
        "n1": "healthy",
        "n2": "degraded",
        "n4": None,
        "n5": "healthy",
    }


def test_statistics():
    cluster = Cluster(step=1)
    manager = FaultToleranceManager(manager=cluster)
    assert manager.get_failure_statistics()["recovery_rate"] is None
    manager.handle_failure("a", None, {**CRASH, "step": 1})
    cluster.step = 2
    manager.get_recovery_report()
    manager.handle_failure("b", FailureType.OOM_FAILURE, {})
    manager.handle_failure("b", None, {"slurm_state": "PREEMPTED"})  # not a failure
    manager.handle_failure("c", FailureType.SOFTWARE_FAILURE, CRASH)
    statistics = manager.get_failure_statistics()
    assert statistics["total_failures"] == 3
    assert statistics["failure_types"] == {"software_failure": 2, "oom_failure": 1}
    assert statistics["recovery_rate"] == pytest.approx(1 / 3)
    assert statistics["most_common_failures"] == [("software_failure", 2), ("oom_failure", 1)]


def test_the_report_has_the_evidence():
    manager = FaultToleranceManager()
    manager.detect_failure("a", {"exit_code": 137, "oom_kill": 1, "node": "n1"})
    manager.handle_failure("b", FailureType.SOFTWARE_FAILURE, {**CRASH, "step": 7})
    report = manager.get_recovery_report()
    assert report["checkpoint_interval_minutes"] == 30
    assert report["jobs"]["a"]["detected"]["evidence"] == ["cgroup on n1: oom_kill +1"]
    assert report["jobs"]["a"]["failures"] == []
    (failure,) = report["jobs"]["b"]["failures"]
    assert (failure["kind"], failure["step"], failure["strategy"]) == ("crash", 7, "restart")
    assert manager.get_recovery_report("c")["jobs"] == {"c": {"detected": None, "failures": []}}


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), "30"])
def test_a_wrong_interval(minutes):
    with pytest.raises((TypeError, ValueError), match="checkpoint_interval_minutes must be"):
        FaultToleranceManager(minutes)
