"""Ranks that the others wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...watch.health.evidence import Evidence, HealthState
from .finding import LEAST_MS, SHARE, Finding, at, consistent
from .join import Collective, Key, Run, named, named_ranks

_Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Wait:
    """What the others wait for some ranks, each time that one line calls."""

    key: Key
    kind: str
    ranks: tuple[int, ...]
    first: Collective
    late_ms: float
    cost_ms: float
    """Median of a call."""
    least_ms: float
    calls: int
    steps: int
    """0: not marked."""


def waits_for_ranks(run: Run) -> list[Finding]:
    """Late ranks, and work that is not even: one finding for the same ranks.

    A rank is late if it comes after the others, and these come together; else the work is uneven, and what
    counts is the last rank against the mean of all.
    """
    by_key: dict[Key, list[Collective]] = defaultdict(list)
    for each in run.collectives:
        if each.moving_s is not None and len(each.ranks) > 1:
            by_key[each.key].append(each)
    comparisons = sum(len(each[0].ranks) for each in by_key.values())
    found: dict[tuple[str, tuple[int, ...]], list[_Wait]] = defaultdict(list)
    for key, collectives in by_key.items():
        for wait in _waits(key, collectives, comparisons):
            found[wait.kind, wait.ranks].append(wait)
    return [_finding(run, waits) for waits in found.values()]


def _waits(key: Key, collectives: Sequence[Collective], comparisons: int) -> Iterator[_Wait]:
    ranks = np.array(collectives[0].ranks)
    lengths = 1e3 * np.array([[each.lengths_s[rank] for rank in each.ranks] for each in collectives])
    stood = 1e3 * np.array([[each.calls[rank].waited for rank in each.ranks] for each in collectives])
    arrivals = lengths.max(axis=1, keepdims=True) - lengths  # after the first one
    medians = np.median(arrivals, axis=0)
    order = np.argsort(medians, kind="stable")
    gaps = np.diff(medians[order])
    cut = int(gaps.argmax()) + 1
    if gaps[cut - 1] < np.ptp(medians) / 2:  # no two sets of ranks, but a slope
        cut = len(order) - 1
        late = len(order) == 2
    else:
        late = len(order) - cut <= len(order) / 2
    last = np.isin(np.arange(len(ranks)), order[cut:])
    others = np.median(arrivals[:, ~last], axis=1) if late else arrivals.mean(axis=1)
    behind = np.median(arrivals[:, last], axis=1) - others
    # Who stands nowhere may wait where no record sees it, as in DDP; only then all of it counts.
    cost = np.minimum(behind, np.median(stood[:, ~last], axis=1)) if stood.any() else behind
    steps = {call.step for each in collectives for call in each.calls.values()} - {0}
    least = max(LEAST_MS * len(steps) / len(collectives), SHARE * _period_ms(collectives))
    if consistent(cost, least, comparisons):
        yield _Wait(
            key=key,
            kind="late_rank" if late else "uneven_work",
            ranks=tuple(ranks[last].tolist()),
            first=next(each for each, value in zip(collectives, cost, strict=True) if value > least),
            late_ms=float(np.median(behind)),
            cost_ms=float(np.median(cost)),
            least_ms=least,
            calls=len(collectives),
            steps=len(steps),
        )


def _period_ms(collectives: Sequence[Collective]) -> float:
    """Time from call to call, on the clock of the lowest rank."""
    rank = min(collectives[0].ranks)
    posted = [each.calls[rank].posted for each in collectives]
    return 1e3 * (posted[-1] - posted[0]) / max(len(posted) - 1, 1)


def _finding(run: Run, waits: Sequence[_Wait]) -> Finding:
    dearest = max(waits, key=lambda wait: wait.cost_ms * wait.calls)
    in_all = sum(wait.cost_ms * wait.calls for wait in waits)
    steps = max(wait.steps for wait in waits)
    per_step = in_all / steps if steps else None
    call = dearest.first.calls[dearest.ranks[0]]
    what = dearest.key.text + (f" and to {len(waits) - 1} more" if len(waits) > 1 else "")
    who = named_ranks(dearest.ranks)
    cost = f"{dearest.cost_ms:.3g} ms of each call" if per_step is None else f"{per_step:.3g} ms of each step"
    come = "come" if len(dearest.ranks) > 1 else "comes"
    if dearest.kind == "late_rank":
        text = f"{who} {come} {dearest.late_ms:.3g} ms late to {what}: {cost}"
    else:
        text = f"{who} {come} last to {what}, {dearest.late_ms:.3g} ms after the mean of the ranks: {cost}"
    return Finding(
        evidence=Evidence(
            kind=dearest.kind,
            state=HealthState.DEGRADED,
            value=dearest.cost_ms,
            threshold=dearest.least_ms,
            since_s=at(run, dearest.ranks[0], call.posted),
            text=text,
        ),
        ranks=dearest.ranks,
        collective=named(call.operation, call.nbytes),
        site=call.site,
        step=call.step if steps else None,
        ms_per_step=per_step,
        ms_in_all=in_all,
    )
