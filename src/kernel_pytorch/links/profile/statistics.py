"""Figures of many calls: medians with their intervals, by operation and size, and by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..facts import Figure
from .join import Collective, Run, bus_factor, named

_RESAMPLES = 1_000
_MOST_SAMPLES = 1_000
"""Of more, evenly spaced ones are resampled."""


def median(values: Sequence[float]) -> Figure:
    """The median, and its 95 % interval by a percentile bootstrap that is seeded.

    Args:
        values: one at least.
    """
    found = np.sort(np.asarray(values, dtype=np.float64))
    count = len(found)
    if count > _MOST_SAMPLES:
        found = found[np.linspace(0, count - 1, _MOST_SAMPLES).round().astype(int)]
    # The values are sorted, so the median of a draw is the value at the median of the drawn places.
    places = np.random.default_rng(0).integers(len(found), size=(_RESAMPLES, len(found)))
    places.partition(len(found) // 2, axis=1)
    low, high = np.percentile(found[places[:, len(found) // 2]], [2.5, 97.5])
    middle = float(np.median(found))
    return Figure(value=middle, low=min(float(low), middle), high=max(float(high), middle), samples=count)


@dataclass(frozen=True, kw_only=True)
class OperationStats:
    """The calls of one operation with one size in groups of one size."""

    operation: str
    nbytes: int | None
    group_size: int
    calls: int
    failed: int
    """Calls that failed or were not over, of which no figure below knows."""
    ms: Figure | None
    """Of moving the data, where all ranks wait for all, else of the longest call; None: no call was done."""
    algbw_mb_s: float | None
    """Of the median, in 10^6 bytes per second, as all bandwidths here."""
    busbw_mb_s: float | None
    waiting_ms: Figure | None
    """How long a rank waits for the last one, the mean of the ranks; None: not all ranks wait for all."""
    hidden_share: float | None
    """Share of the calls' time in which the callers did not stand in a call to wait for them."""


def operation_stats(collectives: Iterable[Collective]) -> tuple[OperationStats, ...]:
    """By operation and size, those of most time first."""
    by: dict[tuple[str, int | None, int], list[Collective]] = defaultdict(list)
    for each in collectives:
        by[each.first.operation, each.first.nbytes, len(each.ranks)].append(each)
    stats = [_stats(*key, found) for key, found in by.items()]
    return tuple(sorted(stats, key=lambda s: -(s.ms.value * s.ms.samples if s.ms else 0.0)))


def _stats(operation: str, nbytes: int | None, size: int, found: list[Collective]) -> OperationStats:
    done = [each for each in found if each.complete and each.seconds is not None]
    ms = median([1e3 * (each.seconds or 0.0) for each in done]) if done else None
    factor = bus_factor(operation, size)
    rate = None if nbytes is None or ms is None or not ms.value else nbytes / ms.value / 1e3
    waits = [1e3 * mean_waiting_s(each) for each in done if each.moving_s is not None]
    whole = sum(_length(each, rank) for each in done for rank in each.calls)
    stood = sum(call.waited for each in done for call in each.calls.values())
    return OperationStats(
        operation=operation,
        nbytes=nbytes,
        group_size=size,
        calls=len(found),
        failed=len(found) - len(done),
        ms=ms,
        algbw_mb_s=rate,
        busbw_mb_s=None if rate is None or factor is None else rate * factor,
        waiting_ms=median(waits) if waits else None,
        hidden_share=min(max(1 - stood / whole, 0.0), 1.0) if whole else None,
    )


def mean_waiting_s(collective: Collective) -> float:
    """How long the ranks of a collective wait for the last one, on average; 0 if that is not known."""
    if collective.moving_s is None:
        return 0.0
    lengths = collective.lengths_s.values()
    return sum(lengths) / len(lengths) - collective.moving_s


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """A median step. What a step has of each kind is the mean of the ranks."""

    steps: int
    """Number of steps of which beginning and end are known on some rank."""
    ms: Figure
    collectives_ms: Figure
    """In which a collective was on its way; several at once count once."""
    hidden_share: float
    """Of these, the share in which the rank did not stand in a call to wait for one."""
    waiting_ms: Figure
    """Of these, waiting for the last rank to arrive."""


def step_stats(run: Run) -> StepStats | None:
    """The steps of a run; None: none has an end that is known."""
    waits, spans, stood = _by_step(run)
    lengths: dict[int, list[float]] = defaultdict(list)
    for begun in run.steps.values():
        for step, at in begun.items():
            if step + 1 in begun:
                lengths[step].append(begun[step + 1] - at)
    if not lengths:
        return None
    steps = sorted(lengths)
    ranks = max(len(run.headers), 1)
    in_collectives = [sum(_union(s) for s in spans[step].values()) / ranks for step in steps]
    standing = sum(stood[step] for step in steps) / ranks
    return StepStats(
        steps=len(steps),
        ms=median([1e3 * sum(lengths[step]) / len(lengths[step]) for step in steps]),
        collectives_ms=median([1e3 * each for each in in_collectives]),
        hidden_share=max(1 - standing / sum(in_collectives), 0.0) if sum(in_collectives) else 0.0,
        waiting_ms=median([1e3 * sum(_union(w) for w in waits[step].values()) / ranks for step in steps]),
    )


_Spans = list[tuple[float, float]]


def _by_step(
    run: Run,
) -> tuple[Mapping[int, Mapping[int, _Spans]], Mapping[int, Mapping[int, _Spans]], Mapping[int, float]]:
    """By step and rank, waiting and calls from begin to end; by step, the seconds that callers stood."""
    waits: dict[int, dict[int, _Spans]] = defaultdict(lambda: defaultdict(list))
    spans: dict[int, dict[int, _Spans]] = defaultdict(lambda: defaultdict(list))
    stood: dict[int, float] = defaultdict(float)
    for each in run.collectives:
        for rank, begun in each.begun.items():
            call = each.calls[rank]
            spans[call.step][rank].append((call.posted, begun + each.lengths_s[rank]))
            waits[call.step][rank].append((begun, begun + (each.waiting_s(rank) or 0.0)))
            stood[call.step] += call.waited
    return waits, spans, stood


def _union(spans: _Spans) -> float:
    """Length of what intervals cover."""
    covered, end = 0.0, -np.inf
    for a, b in sorted(spans):
        covered += max(b - max(a, end), 0.0)
        end = max(end, b)
    return float(covered)


def _length(collective: Collective, rank: int) -> float:
    call = collective.calls[rank]
    return 0.0 if call.done is None else call.done - call.posted


def label(stats: OperationStats) -> str:
    """For people, and as a key: ``all_reduce 25 MB of 4``."""
    return f"{named(stats.operation, stats.nbytes)} of {stats.group_size}"
