"""What earlier attempts of a job, and this one so far, have left in its folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ..folder import JobFolder
from ..recovery.classify import Failure
from ..recovery.timing import MTBF_H

FAULTS = ("crash", "hang", "network", "gpu", "node_lost", "first_node_lost", "unknown")
"""Kinds of failures that come unplanned, and that a checkpoint helps against."""
ENOUGH_FAULTS = 3


def failures(folder: JobFolder) -> list[Failure]:
    """The failures so far, and the times that the job was asked to stop; the oldest first."""
    return [Failure.from_dict(event["failure"]) for event in _events(folder) if event.get("failure")]


def requeues_by_faults(folder: JobFolder) -> int:
    """How often the job was requeued because of a fault, not because it was asked to stop.

    An attempt that no event tells the reason of counts too: the cluster may have begun it by itself, and a
    job must end also where events cannot be written.
    """
    told: int = sum(
        event.get("kind") == "requeue" and event.get("because") == "fault" for event in _events(folder)
    )
    reasons: int = sum(event.get("kind") == "requeue" or "reopened" in event for event in folder.events())
    return told + max(0, len(folder.attempt_numbers()) - 1 - reasons)


def last_saved(folder: JobFolder) -> int | None:
    """The step of the newest checkpoint, or at which ranks left with all saved; None: there is none."""
    steps = [save["step"] for save in _saves(folder)]
    steps += [record.get("left") for record in _records(folder)]
    return max((step for step in steps if step is not None), default=None)


def last_save_s(folder: JobFolder) -> float | None:
    """What the newest checkpoint took, on the slowest rank; None: there is none."""
    saves = list(_saves(folder))
    newest = max((save["step"] for save in saves), default=None)
    return max((save["seconds"] for save in saves if save["step"] == newest), default=None)


def observed_mtbf_h(folder: JobFolder) -> float:
    """Hours between faults of a node: this job's own after three of them, before that :data:`.MTBF_H`."""
    count = sum(failure.kind in FAULTS for failure in failures(folder))
    if count < ENOUGH_FAULTS:
        return MTBF_H
    attempts = folder.attempts()
    begins = [attempt["started_at"] for attempt in attempts] + [time.time()]
    node_s: float = sum(
        (end - begin) * len(attempt["nodes"])
        for attempt, begin, end in zip(attempts, begins, begins[1:], strict=False)
    )
    return max(node_s, 1.0) / 3600 / count


def _events(folder: JobFolder) -> list[dict[str, Any]]:
    """Those since the job ended and somebody, who knows why, had it run again."""
    events = folder.events()
    begins = [number for number, event in enumerate(events) if event.get("reopened")]
    return events[begins[-1] :] if begins else events


def _saves(folder: JobFolder) -> Iterator[dict[str, Any]]:
    for record in _records(folder):
        yield from record.get("saved", ())


def _records(folder: JobFolder) -> Iterator[dict[str, Any]]:
    for attempt in folder.attempt_numbers():
        yield from folder.records(attempt).values()
