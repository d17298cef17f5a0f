"""Jobs as text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...jobs.facts import JobStatus
    from ...jobs.manage import Submitted

UNKNOWN = "unknown"


def submitted_lines(jobs: Sequence[Submitted], to: str) -> Iterator[str]:
    """Jobs that were submitted together: ids, folders, plan, notes and the command that shows the logs."""
    for job in jobs:
        yield f"{job.job_id}: submitted to {to} as {job.native_id}"
        yield f"  folder  {job.folder}"
    first = jobs[0]
    yield f"  plan    {plan_line(first.plan)}"
    yield from (f"  note    {note}" for note in first.notes)
    if first.estimated_start_time is not None:
        yield f"  starts  {moment(first.estimated_start_time)}, as the cluster estimates"
    yield f"  logs    kernel-pytorch logs {first.job_id} --follow"


def plan_line(plan: Mapping[str, Any]) -> str:
    """The numbers of a plan, each with where it comes from."""
    every, _, every_why = plan["checkpoint_every_why"].partition(": ")
    lead, _, lead_why = plan["lead_why"].partition(": ")
    return (
        f"checkpoint every {every} ({every_why}), asked to stop {lead} before the end ({lead_why}), "
        f"{plan['restarts']} restarts ({plan['restarts_why']})"
    )


def state_of(status: JobStatus) -> str:
    """The state, with the cluster's own word where it is another."""
    state = UNKNOWN if status.state is None else status.state.value
    word = status.native_state
    return state if word is None or word.lower() == state else f"{state} ({word})"


def status_lines(status: JobStatus) -> Iterator[str]:
    """All that is known about a job. What is not says so."""
    yield f"{status.job_id}: {state_of(status)}"
    nodes = None if status.allocated_nodes is None else " ".join(status.allocated_nodes)
    if status.allocated_gpus is not None:
        nodes = f"{nodes or UNKNOWN}, {status.allocated_gpus} GPUs"
    rows = {
        "cluster's id": status.native_id,
        "attempt": status.attempt,
        "step": status.step,
        "last checkpoint": None if status.last_checkpoint is None else f"step {status.last_checkpoint}",
        "restarts": status.restart_count,
        "steps lost": status.steps_lost,
        "nodes": nodes,
        "started": None if status.start_time is None else moment(status.start_time),
        "ended": None if status.end_time is None else moment(status.end_time),
        "reason": status.reason,
        "error": status.error_message,
        "as of": None if status.as_of is None else moment(status.as_of),
    }
    for name, value in rows.items():
        if value is not None or name not in ("ended", "reason", "error"):
            yield f"  {name:<16}{UNKNOWN if value is None else one_line(str(value))}"


def table(statuses: Sequence[JobStatus]) -> Iterator[str]:
    """A line by job."""
    rows = [("JOB", "STATE", "ATTEMPT", "STEP", "STARTED", "NODES")]
    for status in statuses:
        started = UNKNOWN if status.start_time is None else moment(status.start_time)
        nodes = UNKNOWN if status.allocated_nodes is None else " ".join(status.allocated_nodes)
        numbers = [UNKNOWN if number is None else str(number) for number in (status.attempt, status.step)]
        rows.append((status.job_id, state_of(status), numbers[0], numbers[1], started, nodes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def event_line(event: Mapping[str, Any]) -> str:
    """Time, attempt, kind and text of an event."""
    at = moment(event["at"]) if isinstance(event.get("at"), (int, float)) else UNKNOWN
    attempt = "" if event.get("attempt") is None else f"attempt {event['attempt']}"
    return f"{at}  {attempt:<10}  {event.get('kind')}: {one_line(str(event.get('text')))}"


def moment(seconds: float) -> str:
    """A time since 1970 by the clock on the wall."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def one_line(text: str) -> str:
    """Text with each run of white space as one blank."""
    return " ".join(text.split())
