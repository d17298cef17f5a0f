"""What a job remembers of its earlier attempts."""

from __future__ import annotations

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node.history import failures, requeues_by_faults
from kernel_pytorch.jobs.recovery.classify import Failure


def test_a_job_that_somebody_runs_again_has_all_its_tries(folder: JobFolder):
    def fail(text: str) -> None:
        folder.event("failure", text, failure=Failure(kind="crash", text=text, step=7).to_dict())
        folder.event("requeue", text, because="fault")

    fail("first")
    fail("second")
    assert ([one.text for one in failures(folder)], requeues_by_faults(folder)) == (["first", "second"], 2)
    folder.event("note", "runs again on request", reopened=True)
    assert (failures(folder), requeues_by_faults(folder)) == ([], 0)
    fail("third")
    assert ([one.text for one in failures(folder)], requeues_by_faults(folder)) == (["third"], 1)


def test_attempts_that_no_event_explains_count_too(folder: JobFolder):
    for _ in range(5):
        folder.claim_attempt({"nodes": ["n1"]})
    folder.event("requeue", "asked to stop", because="asked")
    folder.event("requeue", "node n1 is lost", because="fault")
    assert (
        requeues_by_faults(folder) == 1 + 2
    )  # four attempts followed on another, two of them for no known reason
