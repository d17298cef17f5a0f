"""What to do after a failure: the recovery contract as a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .classify import Failure

DONE, FAILED, USER, REQUEUE = 0, 1, 2, 75
SAME = 3
"""So many crashes at one step have one cause, which no restart removes."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a job may still do."""

    max_retries: int = 3
    restarts_used: int = 0
    """Restarts in place so far that count against ``max_retries``."""
    requeues: int = 0
    """Requeues so far because of a fault; those of a job that was asked to stop do not count."""
    max_requeues: int = 20
    """175 nodes for a month lose as many nodes, if one is lost every 6,300 hours."""
    max_idle_stops: int = 20
    """How often in a row the job may be asked to stop, and run again, without a step."""
    min_nodes: int = 1
    """Of ``min:max``; the job's size, if it has only one."""
    nodes_left: int = 0
    """Nodes that can go on: neither lost nor faulty."""
    is_first_node: bool = False
    """Whether the node that decides, whose ranks failed, is the first one: the others need its store."""
    other_nodes: bool = True
    """Whether there may be others than those that are lost. On one machine there are none."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a node program does next."""

    action: str
    """done, requeue, restart, go_on_smaller or fail."""
    exit_code: int
    """Of the node program: 0 done, 75 requeue, 1 failed, 2 the user's mistake; 0 for nodes that go on."""
    reason: str
    exclude: tuple[str, ...] = ()
    """Nodes that are not to be used again."""


_WHY_NOT_AGAIN = {
    "oom": "it needs the same memory each time",
    "no_space": "the next attempt could not write either",
    "user": "it fails the same way each time",
}
_IN_PLACE = ("crash", "hang", "network", "unknown")


def plan(failure: Failure, history: Sequence[Failure], limits: Limits) -> Decision:
    """Decide. Every chain of decisions ends, if the caller counts restarts and requeues.

    Args:
        failure: what happened now.
        history: earlier failures of the job, the oldest first, without ``failure``.
        limits: what is left.
    """
    kind = failure.kind
    if kind in ("done", "cancelled"):
        return Decision(action="done", exit_code=DONE, reason=failure.text)
    if kind == "stopped":
        return _stopped(failure, history, limits)
    if kind in _WHY_NOT_AGAIN:
        code = USER if kind == "user" else FAILED
        return _fail(f"{failure.text}; not tried again: {_WHY_NOT_AGAIN[kind]}", code)
    if kind in _IN_PLACE:
        return _in_place(failure, history, limits)
    on_another = kind == "node_lost" or (kind == "gpu" and not limits.is_first_node)
    if on_another and failure.nodes:  # else it is not known without which node the others could go on
        smaller = f"{limits.nodes_left} nodes go on, {limits.min_nodes} are enough"
        if 1 <= limits.min_nodes <= limits.nodes_left:
            return Decision(
                action="go_on_smaller",
                exit_code=DONE,
                exclude=failure.nodes,
                reason=f"{failure.text}; {smaller}",
            )
    return _requeue(failure, limits)


def _stopped(failure: Failure, history: Sequence[Failure], limits: Limits) -> Decision:
    """Requeue without limit as long as steps are made."""
    idle = 0
    for earlier in reversed(history):
        if earlier.kind != "stopped" or earlier.step != failure.step:
            break
        idle += 1
    if idle >= limits.max_idle_stops:
        step = "a step" if failure.step is not None else "a known step"
        return _fail(
            f"{failure.text}; stopped {idle + 1} times in a row without {step}: is the time too short?"
        )
    return Decision(
        action="requeue", exit_code=REQUEUE, reason=f"{failure.text}; goes on when it is run again"
    )


def _in_place(failure: Failure, history: Sequence[Failure], limits: Limits) -> Decision:
    same = _times_alike(failure, history)
    if same >= SAME:
        at = "before any known step" if failure.step is None else f"at step {failure.step}"
        return _fail(f"{failure.text}; {same} times {at}, so a restart does not help")
    if limits.restarts_used >= limits.max_retries:
        return _fail(f"{failure.text}; all {limits.max_retries} restarts are used")
    number = f"restart {limits.restarts_used + 1} of {limits.max_retries}"
    return Decision(action="restart", exit_code=DONE, reason=f"{failure.text}; {number}")


def _times_alike(failure: Failure, history: Sequence[Failure]) -> int:
    """How often the same kind came at the same step, this time included, since the job got any further.

    Another step shows that it did. Where no step is known, having run until it was asked to stop does.
    """
    times = 1
    for earlier in reversed(history):
        if earlier.step != failure.step or (failure.step is None and earlier.kind == "stopped"):
            break
        times += earlier.kind == failure.kind
    return times


def _requeue(failure: Failure, limits: Limits) -> Decision:
    if limits.requeues >= limits.max_requeues:
        return _fail(f"{failure.text}; all {limits.max_requeues} requeues are used")
    exclude = failure.nodes if limits.other_nodes else ()
    without = f" without {', '.join(exclude)}" if exclude else ""
    return Decision(
        action="requeue",
        exit_code=REQUEUE,
        exclude=exclude,
        reason=f"{failure.text}; requeue {limits.requeues + 1} of {limits.max_requeues}{without}",
    )


def _fail(reason: str, code: int = FAILED) -> Decision:
    return Decision(action="fail", exit_code=code, reason=reason)
