"""The status of a job from the cluster's word and its folder."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_pytorch.jobs.spec import JobState, JobStatus
from kernel_pytorch.jobs.status import ClusterWord, FolderRecords, status_of

NATIVE = {"target": "slurm", "native_id": "17", "submitted_at": 100.0}
FIRST = {"attempt": 1, "started_at": 110.0, "nodes": ["n1", "n2"], "native": "17"}
SECOND = {"attempt": 2, "started_at": 150.0, "nodes": ["n3"], "native": "17"}
EMPTY = FolderRecords()


def word(state: JobState | None = None, native: str | None = None, **facts: Any) -> ClusterWord:
    return ClusterWord(as_of=200.0, state=state, native_state=native, **facts)


def event(kind: str, at: float, **facts: Any) -> dict[str, Any]:
    return {"at": at, "attempt": 1, "kind": kind, "text": kind, **facts}


def test_a_job_of_which_nothing_is_known():
    reason = "no cluster has acknowledged the job"
    assert status_of("a-1", EMPTY, None) == JobStatus("a-1", restart_count=0, reason=reason)


def test_a_running_job():
    folder = FolderRecords(native=NATIVE, attempts=[FIRST], events=[event("started", 111.0)])
    cluster = word(JobState.RUNNING, "RUNNING", nodes=("n1", "n2"), num_gpus=16, start_time=109.0)
    assert status_of("a-1", folder, cluster) == JobStatus(
        "a-1",
        JobState.RUNNING,
        start_time=110.0,
        allocated_nodes=["n1", "n2"],
        allocated_gpus=16,
        restart_count=0,
        native_id="17",
        native_state="RUNNING",
        attempt=1,
        as_of=200.0,
    )


def test_a_pending_job_has_the_clusters_reason():
    cluster = word(JobState.PENDING, "PENDING", reason="Resources")
    status = status_of("a-1", FolderRecords(native=NATIVE), cluster)
    assert (status.state, status.native_state, status.reason) == (JobState.PENDING, "PENDING", "Resources")
    assert (status.start_time, status.allocated_nodes, status.attempt, status.step) == (None,) * 4


def test_a_word_that_is_not_understood_is_kept():
    status = status_of("a-1", FolderRecords(native=NATIVE, attempts=[FIRST]), word(None, "SPECIAL_EXIT"))
    assert (status.state, status.native_state) == (None, "SPECIAL_EXIT")


@pytest.mark.parametrize("cluster", [None, word(), word(JobState.FAILED, "FAILED", end_time=190.0)])
def test_the_end_record_counts_most(cluster: ClusterWord | None):
    end = {"state": "completed", "reason": "all steps done", "step": 20, "attempt": 2, "at": 180.0}
    folder = FolderRecords(native=NATIVE, attempts=[FIRST, SECOND], end=end)
    status = status_of("a-1", folder, cluster)
    assert (status.state, status.reason, status.step) == (JobState.COMPLETED, "all steps done", 20)
    assert (status.start_time, status.end_time, status.restart_count) == (110.0, 180.0, 1)
    assert status.as_of == (180.0 if cluster is None else 200.0)
    assert status.native_state == (None if cluster is None else cluster.native_state)


def test_a_job_that_the_cluster_has_forgotten_is_not_running():
    status = status_of("a-1", FolderRecords(native=NATIVE, attempts=[FIRST]), word())
    assert (status.state, status.as_of, status.end_time) == (None, 200.0, None)
    assert status.reason == "the cluster does not know the job, and it has recorded no end"
    assert status.allocated_nodes == ["n1", "n2"]


@pytest.mark.parametrize(
    ("folder", "state", "as_of"),
    [
        (FolderRecords(native=NATIVE), JobState.PENDING, 100.0),
        (FolderRecords(native=NATIVE, attempts=[FIRST]), JobState.RUNNING, 110.0),
        (
            FolderRecords(native=NATIVE, attempts=[FIRST, SECOND], events=[event("x", 160.0)]),
            JobState.RUNNING,
            160.0,
        ),
    ],
)
def test_without_an_answer_the_last_known_state_has_its_time(
    folder: FolderRecords, state: JobState, as_of: float
):
    status = status_of("a-1", folder, None)
    assert (status.state, status.as_of, status.native_state) == (state, as_of, None)
    assert status.reason == "the cluster could not be asked; this is what the job's folder has"


def test_an_end_only_the_cluster_knows():
    folder = FolderRecords(native=NATIVE, attempts=[FIRST])
    cancelled = status_of("a-1", folder, word(JobState.CANCELLED, "CANCELLED by 0", end_time=190.0))
    assert (cancelled.state, cancelled.end_time) == (JobState.CANCELLED, 190.0)
    # A requeued job may still have the end of its last run.
    assert status_of("a-1", folder, word(JobState.PENDING, "PENDING", end_time=190.0)).end_time is None


def test_steps_saves_and_errors_are_those_of_the_records():
    records = {
        1: {0: {"saved": [{"step": 10, "seconds": 1.0}, {"step": 20, "seconds": 1.0}], "left": 20}},
        2: {
            0: {"saved": [], "error": "peer closed", "type": "RuntimeError", "step": 26},
            1: {"saved": [], "error": "boom", "type": "ValueError", "step": 25},
        },
    }
    events = [
        event("restart", 120.0, step=8, steps_lost=8),
        event("requeue", 130.0),
        event("go_on_smaller", 155.0, step=24, steps_lost=0),
    ]
    folder = FolderRecords(native=NATIVE, attempts=[FIRST, SECOND], events=events, records=records)
    status = status_of("a-1", folder, word(JobState.RUNNING, "RUNNING"))
    assert (status.step, status.last_checkpoint, status.attempt) == (26, 20, 2)
    assert (status.restart_count, status.steps_lost) == (3, 8)
    assert status.error_message == "rank 1: ValueError: boom"


def test_zero_is_known_and_none_is_not():
    records = {1: {0: {"saved": [], "left": None}, 1: {"saved": [{"step": 0, "seconds": 0.1}]}}}
    folder = FolderRecords(attempts=[FIRST], events=[event("restart", 1.0, steps_lost=0)], records=records)
    status = status_of("a-1", folder, None)
    assert (status.step, status.last_checkpoint, status.steps_lost) == (0, 0, 0)
    nothing = status_of("a-1", FolderRecords(attempts=[FIRST], records={1: {0: {"saved": []}}}), None)
    assert (nothing.step, nothing.last_checkpoint, nothing.steps_lost) == (None, None, None)


def test_a_completed_job_has_no_error():
    records = {1: {0: {"error": "boom", "type": "ValueError", "step": 3}}}
    folder = FolderRecords(attempts=[FIRST], records=records, end={"state": "completed", "at": 1.0})
    assert status_of("a-1", folder, None).error_message is None
    failed = FolderRecords(attempts=[FIRST], records=records, end={"state": "failed", "at": 1.0})
    assert status_of("a-1", failed, None).error_message == "rank 0: ValueError: boom"


def test_nodes_are_those_that_went_on():
    folder = FolderRecords(
        native={"native_id": "7"},
        attempts=[{"attempt": 1, "started_at": 1.0, "nodes": ["n1", "n2"]}],
        events=[
            {"kind": "attempt", "attempt": 1, "nodes": ["n1", "n2"]},
            {"kind": "go_on_smaller", "attempt": 1, "nodes": ["n1"]},
        ],
    )
    assert status_of("books", folder, None).allocated_nodes == ["n1"]
    word = ClusterWord(as_of=2.0, native_state="RUNNING", nodes=("n1", "n3"))
    assert status_of("books", folder, word).allocated_nodes == ["n1", "n3"]
