"""Ranks that the others wait for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...watch.health.evidence import Evidence, HealthState
from .finding import LEAST_MS, SHARE, Finding, at, consistent
from .join import Collective, Key, Run, named, named_ranks

_GAP = 0.4
"""Of the spread of the ranks' arrivals: what is between late ranks and the others."""

_Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Series:
    """Calls that are compared with each other: one in each step, or, without steps, all of one line."""

    key: Key
    collectives: Sequence[Collective]
    arrivals_ms: _Numbers
    """[calls, ranks], after the first rank."""
    stood_ms: _Numbers
    """[calls, ranks]: how long each rank stood in calls to wait in this step."""
    summed: int = 1
    """Calls of a step that are added up here; ``key`` is the one to which ranks come most unevenly."""


@dataclass(frozen=True, kw_only=True)
class _Wait:
    """What the others wait for some ranks."""

    series: _Series
    kind: str
    ranks: tuple[int, ...]
    first: Collective
    late_ms: float
    cost_ms: float
    """Median of a call."""
    least_ms: float


def waits_for_ranks(run: Run) -> list[Finding]:
    """Late ranks, and work that is not even: one finding for the same ranks of a group.

    A rank is late if it comes after the others, and these come together; else the work is uneven, and what
    counts is the last rank against the mean of all. Each call of a step is looked at, and if nothing is found
    in any of them, their sum.
    """
    by_group: dict[str, list[Collective]] = defaultdict(list)
    for each in run.collectives:
        if each.moving_s is not None and len(each.ranks) > 1:
            by_group[each.group].append(each)
    series = {group: _series(collectives) for group, collectives in by_group.items()}
    comparisons = sum(len(each.collectives[0].ranks) for found in series.values() for each in found)
    findings = []
    for found in series.values():
        waits = [wait for each in found if (wait := _wait(each, comparisons)) is not None]
        if not waits and len(found) > 1 and (sum_of_all := _sum(found)) is not None:
            wait = _wait(sum_of_all, comparisons)
            waits = [] if wait is None else [wait]
        by_ranks: dict[tuple[str, tuple[int, ...]], list[_Wait]] = defaultdict(list)
        for wait in waits:
            by_ranks[wait.kind, wait.ranks].append(wait)
        findings += [_finding(run, same) for same in by_ranks.values()]
    return findings


def _series(collectives: Sequence[Collective]) -> list[_Series]:
    """The calls of a group by their place in a step; what comes before the first one is left out."""
    if any(each.first.step for each in collectives):
        collectives = [each for each in collectives if each.first.step]
    stood: dict[int, _Numbers] = defaultdict(lambda: np.zeros(len(collectives[0].ranks)))
    places: dict[tuple[Key, int], list[Collective]] = defaultdict(list)
    seen: Counter[tuple[Key, int]] = Counter()
    for each in collectives:
        key, step = each.key, each.first.step
        if step:
            stood[step] += [each.calls[rank].waited for rank in each.ranks]
        places[key, seen[key, step] if step else 0].append(each)
        seen[key, step] += 1
    found = []
    for (key, _), same in places.items():
        lengths = np.array([[each.lengths_s[rank] for rank in each.ranks] for each in same])
        stands = [
            stood[each.first.step] if each.first.step else [each.calls[rank].waited for rank in each.ranks]
            for each in same
        ]
        found.append(
            _Series(
                key=key,
                collectives=same,
                arrivals_ms=1e3 * (lengths.max(axis=1, keepdims=True) - lengths),
                stood_ms=1e3 * np.array(stands),
            )
        )
    return found


def _sum(series: Sequence[_Series]) -> _Series | None:
    """All calls of a group, step by step; None: there are no steps."""
    totals: dict[int, _Numbers] = {}
    firsts: dict[int, Collective] = {}
    stood: dict[int, _Numbers] = {}
    for each in series:
        for collective, arrivals, stands in zip(
            each.collectives, each.arrivals_ms, each.stood_ms, strict=True
        ):
            step = collective.first.step
            totals[step] = totals.get(step, 0.0) + arrivals
            stood[step] = stands
            firsts.setdefault(step, collective)
    steps = sorted(totals.keys() - {0})
    if not steps:
        return None
    dearest = max(series, key=lambda each: float(np.ptp(np.median(each.arrivals_ms, axis=0))))
    return _Series(
        key=dearest.key,
        collectives=[firsts[step] for step in steps],
        arrivals_ms=np.array([totals[step] for step in steps]),
        stood_ms=np.array([stood[step] for step in steps]),
        summed=len(series),
    )


def _wait(series: _Series, comparisons: int) -> _Wait | None:
    collectives, arrivals, stood = series.collectives, series.arrivals_ms, series.stood_ms
    ranks = np.array(collectives[0].ranks)
    medians = np.median(arrivals, axis=0)
    order = np.argsort(medians, kind="stable")
    gaps = np.diff(medians[order])
    least_others = (len(order) + 1) // 2  # more than half of the ranks cannot be late
    cut = least_others + int(gaps[least_others - 1 :].argmax())
    late = gaps[cut - 1] >= _GAP * np.ptp(medians)
    if not late:
        cut = int(gaps.argmax()) + 1
        if gaps[cut - 1] < _GAP * np.ptp(medians):  # a slope
            cut = len(order) - 1
    last = np.isin(np.arange(len(ranks)), order[cut:])
    others = np.median(arrivals[:, ~last], axis=1) if late else arrivals.mean(axis=1)
    behind = np.median(arrivals[:, last], axis=1) - others
    # If no rank stands anywhere, waiting is where no record sees it.
    cost = np.minimum(behind, np.median(stood[:, ~last], axis=1)) if stood.any() else behind
    least = max(LEAST_MS, SHARE * _period_ms(collectives))
    if not consistent(cost.tolist(), least, comparisons):
        return None
    return _Wait(
        series=series,
        kind="late_rank" if late else "uneven_work",
        ranks=tuple(ranks[last].tolist()),
        first=next(each for each, value in zip(collectives, cost, strict=True) if value > least),
        late_ms=float(np.median(behind)),
        cost_ms=float(np.median(cost)),
        least_ms=least,
    )


def _period_ms(collectives: Sequence[Collective]) -> float:
    """Time from call to call, on the clock of the lowest rank."""
    rank = min(collectives[0].ranks)
    posted = [each.calls[rank].posted for each in collectives]
    return 1e3 * (posted[-1] - posted[0]) / max(len(posted) - 1, 1)


def _finding(run: Run, waits: Sequence[_Wait]) -> Finding:
    dearest = max(waits, key=lambda wait: wait.cost_ms * len(wait.series.collectives))
    in_all = sum(wait.cost_ms * len(wait.series.collectives) for wait in waits)
    steps = {each.first.step for wait in waits for each in wait.series.collectives} - {0}
    per_step = in_all / len(steps) if steps else None
    call = dearest.first.calls[dearest.ranks[0]]
    key = dearest.series.key
    what = key.text + (f" and {len(waits) - 1} more" if len(waits) > 1 else "")
    if dearest.series.summed > 1:
        what = f"{dearest.series.summed} calls together, most to {key.text}"
    who, come = named_ranks(dearest.ranks), "come" if len(dearest.ranks) > 1 else "comes"
    cost = f"{dearest.cost_ms:.3g} ms of each call" if per_step is None else f"{per_step:.3g} ms of each step"
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
        collective=named(key.operation, key.nbytes),
        site=key.site,
        step=call.step if steps else None,
        ms_per_step=per_step,
        ms_in_all=in_all,
    )
