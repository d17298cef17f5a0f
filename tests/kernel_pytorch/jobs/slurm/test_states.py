"""Every word of Slurm's for the state of a job, and the reasons by which one never starts."""

from __future__ import annotations

import pytest

from kernel_pytorch.jobs.facts import JobState
from kernel_pytorch.jobs.slurm.states import STATES, long_word, reason_of, state_of

P, R, C, F, X = (
    JobState.PENDING,
    JobState.RUNNING,
    JobState.COMPLETED,
    JobState.FAILED,
    JobState.CANCELLED,
)
# https://slurm.schedmd.com/job_state_codes.html, in its order: base states, then flags.
DOCUMENTED = {
    **{"BOOT_FAIL": F, "CANCELLED": X, "COMPLETED": C, "DEADLINE": F, "FAILED": F, "NODE_FAIL": F},
    **{"OUT_OF_MEMORY": F, "PENDING": P, "PREEMPTED": F, "RUNNING": R, "SUSPENDED": R, "TIMEOUT": F},
    **{"COMPLETING": R, "CONFIGURING": P, "EXPEDITING": P, "LAUNCH_FAILED": P, "POWER_UP_NODE": P},
    **{"RECONFIG_FAIL": P, "REQUEUED": P, "REQUEUE_FED": P, "REQUEUE_HOLD": P},
    **{"RESIZING": JobState.SCALING, "RESV_DEL_HOLD": P, "REVOKED": X, "SIGNALING": R, "SPECIAL_EXIT": P},
    **{"STAGE_OUT": R, "STOPPED": R, "UPDATE_DB": None},
}
# squeue(1), JOB STATE CODES.
COMPACT = {
    **{"BF": "BOOT_FAIL", "CA": "CANCELLED", "CD": "COMPLETED", "CF": "CONFIGURING", "CG": "COMPLETING"},
    **{"DL": "DEADLINE", "F": "FAILED", "NF": "NODE_FAIL", "OOM": "OUT_OF_MEMORY", "PD": "PENDING"},
    **{"PR": "PREEMPTED", "R": "RUNNING", "RD": "RESV_DEL_HOLD", "RF": "REQUEUE_FED", "RH": "REQUEUE_HOLD"},
    **{"RQ": "REQUEUED", "RS": "RESIZING", "RV": "REVOKED", "SI": "SIGNALING", "SE": "SPECIAL_EXIT"},
    **{"SO": "STAGE_OUT", "ST": "STOPPED", "S": "SUSPENDED", "TO": "TIMEOUT"},
}


def test_every_documented_state_is_mapped():
    assert DOCUMENTED == STATES
    for word, state in DOCUMENTED.items():
        for form in (word, word.lower(), f"JOB_{word}", f"{word}+", f" {word} by 1000\n"):
            assert (long_word(form), state_of(form)) == (word, state), form


def test_every_compact_form():
    assert {short: long_word(short) for short in COMPACT} == COMPACT
    assert all(state_of(short) is DOCUMENTED[word] for short, word in COMPACT.items())


def test_what_is_not_known_is_none_and_keeps_its_word():
    assert (state_of("TELEPORTED"), long_word("TELEPORTED")) == (None, "TELEPORTED")
    assert (state_of(""), long_word(" ")) == (None, None)


@pytest.mark.parametrize("reason", ["", "None", "N/A", "(null)"])
def test_no_reason(reason: str):
    assert reason_of(P, reason) is None


# Of https://slurm.schedmd.com/job_reason_codes.html, those that wait for somebody to change something.
NEVER = """
AccountNotAllowed AssocMaxCpuPerJobLimit AssocMaxGRESPerNode AssocMaxNodePerJobLimit AssocMaxMemPerNode
AssocMaxWallDurationPerJobLimit AssocMaxCpuMinutesPerJobLimit BadConstraints DeadLine DependencyNeverSatisfied
InvalidAccount InvalidQOS JobHeldAdmin JobHeldUser JobHoldMaxRequeue JobLaunchFailure MaxMemPerLimit
PartitionNodeLimit PartitionTimeLimit QOSMaxCpuPerJobLimit QOSMaxNodePerJobLimit QOSMaxGRESPerNode
QOSMaxWallDurationPerJobLimit QOSMinCpuNotSatisfied QOSMinGRES QOSMinNode QOSNotAllowed ReservationDeleted
"""
WAITS = """
AssocGrpCpuLimit AssocGrpJobsLimit AssocMaxJobsLimit AssocMaxSubmitJobLimit BeginTime Cleaning Dependency
JobArrayTaskLimit Licenses MaxGRESPerAccount NodeDown PartitionDown Priority QOSGrpGRES QOSMaxGRESPerUser
QOSMaxJobsPerUserLimit QOSMaxCpuPerUserLimit QOSResourceLimit Reservation Resources TimeLimit
"""


@pytest.mark.parametrize("reason", NEVER.split())
def test_reasons_by_which_a_job_never_starts(reason: str):
    assert (reason_of(P, reason) or "").startswith(f"{reason}: it will not start: ")
    assert reason_of(F, reason) == reason


@pytest.mark.parametrize("reason", [*WAITS.split(), "ReqNodeNotAvail, UnavailableNodes:n[1-2]"])
def test_reasons_that_pass(reason: str):
    assert reason_of(P, reason) == reason
