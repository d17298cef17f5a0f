"""Slurm's words for the state of a job, and for the reason of it.

Sources: https://slurm.schedmd.com/job_state_codes.html, job_reason_codes.html, squeue(1).
"""

from __future__ import annotations

import re

from ..facts import JobState

_BASE = {
    "BOOT_FAIL": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "COMPLETED": JobState.COMPLETED,
    "DEADLINE": JobState.FAILED,
    "FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "PENDING": JobState.PENDING,
    "PREEMPTED": JobState.FAILED,
    "RUNNING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "TIMEOUT": JobState.FAILED,
}
# Shown instead of the base state. Until a job is over it has its nodes, so it counts as running.
_FLAGS = {
    "COMPLETING": JobState.RUNNING,
    "CONFIGURING": JobState.PENDING,
    "EXPEDITING": JobState.PENDING,
    "LAUNCH_FAILED": JobState.PENDING,  # requeued, and held
    "POWER_UP_NODE": JobState.PENDING,
    "RECONFIG_FAIL": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESIZING": JobState.SCALING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "REVOKED": JobState.CANCELLED,  # another cluster of the federation runs it
    "SIGNALING": JobState.RUNNING,
    "SPECIAL_EXIT": JobState.PENDING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "UPDATE_DB": None,  # says nothing of the job
}
_COMPACT = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "DL": "DEADLINE",
    "F": "FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RD": "RESV_DEL_HOLD",
    "RF": "REQUEUE_FED",
    "RH": "REQUEUE_HOLD",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    "SE": "SPECIAL_EXIT",
    "SI": "SIGNALING",
    "SO": "STAGE_OUT",
    "ST": "STOPPED",
    "TO": "TIMEOUT",
}
STATES: dict[str, JobState | None] = {**_BASE, **_FLAGS}
"""Base states and flags."""

_OVER_LIMIT = "it asks for more than one job may have: ask for less, or choose another partition or qos"
_NEVER = {
    "AccountNotAllowed": "choose another account or partition",
    "BadConstraints": "no node has what it asks for, or too many are excluded",
    "DeadLine": "it cannot end before its deadline",
    "DependencyNeverSatisfied": "the job it waits for has failed: cancel it, or correct its dependency",
    "InvalidAccount": "choose another account",
    "InvalidQOS": "choose another qos",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "it is held: scontrol release JOB",
    "JobHoldMaxRequeue": "it was requeued too often: scontrol release JOB",
    "JobLaunchFailure": "it could not be launched, and is held: see slurmd's log, then scontrol release JOB",
    "MaxMemPerLimit": "it asks for more memory than a job may have",
    "PartitionNodeLimit": "it asks for more or fewer nodes than the partition gives, or those nodes are down",
    "PartitionTimeLimit": "its time limit is longer than the partition's",
    "QOSNotAllowed": "choose another qos or partition",
    "ReservationDeleted": "its reservation was deleted: choose another, then scontrol release JOB",
}
_LIMIT_OF_A_JOB = re.compile(r"(Assoc|QOS)(Max\w+Per(Job|Node)(Limit)?|Min\w+)")


def state_of(word: str) -> JobState | None:
    """The state that a word of Slurm's means; None: none, or not known.

    Args:
        word: long, compact, with ``JOB_`` before it, or as of sacct: ``CANCELLED by 1000``, ``CANCELLED+``.
    """
    name = long_word(word)
    return None if name is None else STATES.get(name)


def long_word(word: str) -> str | None:
    """The long form of a word for a state, in capitals; None if it is empty."""
    first = (word.split() or [""])[0].rstrip("+").upper().removeprefix("JOB_")
    return _COMPACT.get(first, first) or None


def reason_of(state: JobState | None, reason: str) -> str | None:
    """Slurm's reason, and for one by which a job does not start as it is, what to do; None: it gives none."""
    if reason in ("", "None", "N/A", "(null)"):
        return None
    fix = _NEVER.get(reason) or (_OVER_LIMIT if _LIMIT_OF_A_JOB.fullmatch(reason) else None)
    if fix is None or state not in (None, JobState.PENDING):
        return reason
    return f"{reason}: it will not start: {fix}"
