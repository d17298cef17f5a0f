"""Failures of jobs as seen from outside: what they are, what to do, and whether it helped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import KernelPytorchError
from ..watch.health.evidence import HealthState
from .checks import check_duration
from .fault_info import brief_kind, evidence_of
from .recovery.classify import Failure, classify
from .recovery.messages import TYPES
from .recovery.plan import DONE, Decision, Limits, plan
from .spec import MAX_HOURS, FailureType, JobState, JobStatus

_KINDS = {
    FailureType.NODE_FAILURE: "node_lost",
    FailureType.GPU_FAILURE: "gpu",
    FailureType.NETWORK_FAILURE: "network",
    FailureType.SOFTWARE_FAILURE: "crash",
    FailureType.OOM_FAILURE: "oom",
    FailureType.TIMEOUT_FAILURE: "timeout",
}
"""Of several kinds of a type, the one that is tried again longest."""
_ACTIVE = (JobState.PENDING, JobState.RUNNING, JobState.SCALING)


class Executor(Protocol):
    """Whoever can ask after a job and run it again, such as a cluster's manager."""

    def get_job_status(self, job_id: str) -> JobStatus:
        """How a job is."""

    def requeue_job(self, job_id: str, exclude: Sequence[str] = ()) -> object:
        """Run a job again, without the nodes of ``exclude``."""


@dataclass(kw_only=True)
class Handled:
    """A failure, and what was decided."""

    failure: Failure
    decision: Decision
    attempt: int
    """How many failures of this job were handled, this one included."""
    at: float
    """Seconds since 1970."""
    reason: str
    step: int | None
    """The last one known when it was handled."""
    recovered: bool | None = None
    """True: a later step was seen. None: not yet."""

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            **self.failure.to_dict(),
            "at": self.at,
            "step": self.step,
            "attempt": self.attempt,
            "strategy": self.decision.action,
            "reason": self.reason,
            "recovered": self.recovered,
        }


class Faults:
    """Classifies failures, decides by the recovery contract, and acts through an executor, if there is one.

    Args:
        checkpoint_interval_minutes: the longest time between checkpoints of the jobs.
        executor: None: decisions are only returned.
    """

    def __init__(self, checkpoint_interval_minutes: float, executor: Executor | None = None) -> None:
        check_duration("checkpoint_interval_minutes", checkpoint_interval_minutes, 60 * MAX_HOURS)
        self.checkpoint_interval_minutes, self._executor = checkpoint_interval_minutes, executor
        self.detected: dict[str, Failure] = {}
        """What was detected last, by job, with the evidence that decided."""
        self.handled: dict[str, list[Handled]] = {}
        self.nodes: dict[str, HealthState | None] = {}
        """Health by node; None: not known."""

    def detect(self, job_id: str, info: Mapping[str, Any]) -> FailureType | None:
        """The type of a failure; None: it is none, or it is not known which.

        Args:
            job_id: of the job.
            info: see :func:`.evidence_of`.
        """
        failure = classify(evidence_of(info), attempt=info.get("attempt"))
        if failure.kind in ("unknown", "crash", "done") and (brief := brief_kind(info)):
            kind, said = brief
            evidence = (*failure.evidence, f"message: {said}")
            failure = replace(failure, kind=kind, type=TYPES[kind], text=said, evidence=evidence)
        self.detected[job_id] = failure
        return None if failure.type is None else FailureType(failure.type)

    def handle(self, job_id: str, failure_type: FailureType | None, info: Mapping[str, Any]) -> Handled:
        """Decide about a failure and act. Errors of the executor are raised; then nothing is recorded.

        Args:
            job_id: of the job.
            failure_type: counts more than what ``info`` tells; None: what ``info`` tells.
            info: see :func:`.evidence_of`.
        """
        found = self.detect(job_id, info)
        failure = self.detected[job_id]
        if failure_type is not None and failure_type is not found:
            failure = _as_told(failure, FailureType(failure_type))
        earlier = self.handled.setdefault(job_id, [])
        status = None if self._executor is None else self._executor.get_job_status(job_id)
        seen = None if status is None else status.step
        if failure.step is None:
            failure = replace(failure, step=seen)
        decision = plan(failure, [item.failure for item in earlier], _limits(earlier))
        if status is not None and status.state in (JobState.COMPLETED, JobState.CANCELLED):
            decision = Decision(action="done", exit_code=DONE, reason=f"the job is {status.state.value}")
        handled = Handled(
            failure=failure,
            decision=decision,
            attempt=len(earlier) + 1,
            at=time.time(),
            reason=decision.reason + self._act(job_id, decision, status),
            step=max((step for step in (failure.step, seen) if step is not None), default=None),
        )
        earlier.append(handled)
        self.nodes.update(dict.fromkeys(failure.nodes, HealthState.FAILED))
        return handled

    def _act(self, job_id: str, decision: Decision, status: JobStatus | None) -> str:
        """Run the job again, if that was decided; what the reason says of it."""
        if decision.action not in ("restart", "requeue"):
            return ""
        since = f"; steps of at most {self.checkpoint_interval_minutes:g} min are repeated"
        if self._executor is None or status is None:
            return f"{since}; nothing was done, as no manager was given"
        if decision.action == "restart" and status.state in _ACTIVE:
            return f"{since}; the job's own node programs restart it"
        failed = [node for node, state in self.nodes.items() if state is HealthState.FAILED]
        self._executor.requeue_job(job_id, exclude=tuple(dict.fromkeys([*decision.exclude, *failed])))
        return f"{since}; the job was requeued"

    def verify(self) -> None:
        """Ask after the jobs whose recovery was not seen yet."""
        for job_id, items in self.handled.items():
            if self._executor is None or all(item.recovered for item in items):
                continue
            try:
                step = self._executor.get_job_status(job_id).step
            except KernelPytorchError:
                continue  # stays not known
            for item in items:
                if step is not None and (item.step is None or step > item.step):
                    item.recovered = True

    def statistics(self) -> dict[str, Any]:
        """Failures of all jobs by type, and the share of them after which a later step was seen."""
        self.verify()
        items = [item for handled in self.handled.values() for item in handled if _counts(item.failure)]
        types = Counter(item.failure.type or "unknown" for item in items)
        recovered = sum(item.recovered is True for item in items)
        return {
            "total_failures": len(items),
            "failure_types": dict(types),
            "recovery_rate": recovered / len(items) if items else None,
            "most_common_failures": types.most_common(5),
        }

    def report(self, job_id: str | None = None) -> dict[str, Any]:
        """Failures with their evidence and outcome, by job.

        Args:
            job_id: None: of all jobs.
        """
        self.verify()
        jobs = sorted({*self.detected, *self.handled}) if job_id is None else [job_id]
        return {
            "checkpoint_interval_minutes": self.checkpoint_interval_minutes,
            "jobs": {
                job: {
                    "detected": self.detected[job].to_dict() if job in self.detected else None,
                    "failures": [item.to_dict() for item in self.handled.get(job, ())],
                }
                for job in jobs
            },
            "nodes": {node: state and state.value for node, state in self.nodes.items()},
        }


def node_state(health: object) -> HealthState | None:
    """The health of a node from a state or its value, from a score (1 healthy, 0 failed), or from a mapping
    that has one of these as ``state``, ``status`` or ``health``; None: not known.

    Raises:
        ValueError: anything else.
    """
    if isinstance(health, Mapping):
        names = [name for name in ("state", "status", "health") if name in health]
        return node_state(health[names[0]]) if names else None
    if health is None or isinstance(health, HealthState):
        return health
    if isinstance(health, (int, float)) and 0 <= health <= 1:
        middle = HealthState.DEGRADED if health < 1 else HealthState.HEALTHY
        return middle if health else HealthState.FAILED
    words = [state.value for state in HealthState]
    if health not in words:
        raise ValueError(f"health must be {', '.join(words)}, or from 0 to 1, got {health!r:.80}")
    return HealthState(health)


def _as_told(failure: Failure, told: FailureType) -> Failure:
    said = f"reported as {told.value.replace('_', ' ')}"
    text = said if failure.type is None else f"{said}: {failure.text}"
    return replace(failure, kind=_KINDS[told], type=told.value, text=text, evidence=(*failure.evidence, said))


def _counts(failure: Failure) -> bool:
    return failure.kind == "unknown" or TYPES[failure.kind] is not None


def _limits(earlier: Sequence[Handled]) -> Limits:
    """The nodes that are left are not known here, so a job does not go on smaller."""
    actions = [item.decision.action for item in earlier if _counts(item.failure)]
    return Limits(restarts_used=actions.count("restart"), requeues=actions.count("requeue"))
