"""How a job is: what the cluster says of it, and what its folder has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .facts import JobState, JobStatus

FINAL = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)
LOST = "lost"
"""A target's own word for a job that does not run and has recorded no end, where a cluster has no word."""
RESTARTS = ("restart", "go_on_smaller")
"""Kinds of events after which the ranks of an attempt began anew."""


@dataclass(frozen=True, kw_only=True)
class ClusterWord:
    """What a cluster answered about a job; with ``native_state`` None that it does not know the job."""

    as_of: float
    """When it was asked, in seconds since 1970; so are the other times."""
    native_state: str | None = None
    """Its own word."""
    state: JobState | None = None
    """What that word means; None: not known."""
    reason: str | None = None
    nodes: Sequence[str] | None = None
    num_gpus: int | None = None
    """On all nodes together."""
    start_time: float | None = None
    end_time: float | None = None


@dataclass(frozen=True, kw_only=True)
class FolderRecords:
    """What a job's folder has, each as it is in its file."""

    native: Mapping[str, Any] | None = None
    attempts: Sequence[Mapping[str, Any]] = ()
    """The oldest first."""
    events: Sequence[Mapping[str, Any]] = ()
    """The oldest first. Their facts may have ``step`` and ``steps_lost``."""
    records: Mapping[int, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    """By attempt and rank; the newest attempt will do, and earlier ones up to one that has saved."""
    end: Mapping[str, Any] | None = None


def status_of(job_id: str, folder: FolderRecords, word: ClusterWord | None) -> JobStatus:
    """The status of a job. Its own end record counts more than the cluster's word.

    Args:
        job_id: ours.
        folder: what the job's folder has.
        word: the cluster's; None: it could not be asked. Then the state is the last one that the folder tells
            of, and ``as_of`` its time.
    """
    state, why, as_of = _state(folder, word)
    last = folder.attempts[-1] if folder.attempts else {}
    end = folder.end or {}
    nodes = _nodes(folder) if word is None or word.nodes is None or folder.end is not None else word.nodes
    ended = word.end_time if word is not None and state in FINAL else None
    started = None if word is None else word.start_time
    if folder.attempts:
        started = folder.attempts[0]["started_at"]
    return JobStatus(
        job_id=job_id,
        state=state,
        start_time=started,
        end_time=end.get("at", ended),
        allocated_nodes=None if nodes is None else list(nodes),
        allocated_gpus=None if word is None else word.num_gpus,
        error_message=None if state is JobState.COMPLETED else _error(folder),
        restart_count=max(0, len(folder.attempts) - 1)
        + sum(event.get("kind") in RESTARTS for event in folder.events),
        last_checkpoint=max(_saved_steps(folder), default=None),
        native_id=None if folder.native is None else folder.native.get("native_id"),
        native_state=None if word is None else word.native_state,
        reason=why,
        attempt=last.get("attempt"),
        step=max(_steps(folder), default=None),
        steps_lost=_sum_of(event.get("steps_lost") for event in folder.events),
        as_of=as_of,
    )


def _nodes(folder: FolderRecords) -> Sequence[str] | None:
    """Those that the newest attempt has, or had last: it may have lost some and gone on."""
    if not folder.attempts:
        return None
    last = folder.attempts[-1]
    found: Sequence[str] | None = last.get("nodes")
    for event in folder.events:
        if event.get("kind") in ("attempt", "go_on_smaller") and event.get("attempt") == last.get("attempt"):
            found = event.get("nodes", found)
    return found


def _state(
    folder: FolderRecords, word: ClusterWord | None
) -> tuple[JobState | None, str | None, float | None]:
    """State, the reason of it, and when it was so."""
    if folder.end is not None:
        at = folder.end.get("at")
        return JobState(folder.end["state"]), folder.end.get("reason"), at if word is None else word.as_of
    if word is None:
        return _last_known(folder)
    if word.native_state is None:
        return None, "the cluster does not know the job, and it has recorded no end", word.as_of
    return word.state, word.reason, word.as_of


def _last_known(folder: FolderRecords) -> tuple[JobState | None, str | None, float | None]:
    if folder.native is None:
        return None, "no cluster has acknowledged the job", None
    moments = [item.get("at") for item in folder.events]
    moments += [item.get("started_at") for item in folder.attempts] + [folder.native.get("submitted_at")]
    at = max((moment for moment in moments if moment is not None), default=None)
    state = JobState.RUNNING if folder.attempts else JobState.PENDING
    return state, "the cluster could not be asked; this is what the job's folder has", at


def _records(folder: FolderRecords) -> Iterator[Mapping[str, Any]]:
    for by_rank in folder.records.values():
        yield from by_rank.values()


def _saved_steps(folder: FolderRecords) -> Iterator[int]:
    for record in _records(folder):
        yield from (save["step"] for save in record.get("saved", ()))
        if record.get("left") is not None:
            yield record["left"]


def _steps(folder: FolderRecords) -> Iterator[int]:
    yield from _saved_steps(folder)
    for item in (*_records(folder), *folder.events, folder.end or {}):
        if item.get("step") is not None:
            yield item["step"]


def _error(folder: FolderRecords) -> str | None:
    """Of the rank that failed first in the newest attempt, as far as steps tell."""
    newest = folder.records.get(max(folder.records, default=0), {})
    failed = [(item.get("step") or 0, rank) for rank, item in newest.items() if "error" in item]
    if not failed:
        return None
    rank = min(failed)[1]
    record = newest[rank]
    return f"rank {rank}: {record.get('type', 'error')}: {record['error']}"


def _sum_of(values: Iterator[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
