"""How far the clocks of ranks are apart. Only pictures need it: nothing else compares two clocks.

Whatever goes to a rank and back bounds the difference (Cristian, 1989): the other clock was read between the
two moments. A collective in which all wait for all is such a round trip: none is done with it before the
others have called it. So nothing has to be sent.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .join import Run

Bounds = tuple[float, float]
"""Between which a difference lies, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Offset:
    """What a clock shows more than that of the lowest rank."""

    seconds: float
    error_s: float | None
    """By how much it may be wrong; None: nothing connects the two, and their hosts' clocks are believed."""


def combined(bounds: Iterable[Bounds]) -> Offset:
    """What all bounds allow. If the clocks drift, so that nothing is left, the narrowest ones.

    Args:
        bounds: one at least.
    """
    every = list(bounds)
    low, high = max(low for low, _ in every), min(high for _, high in every)
    if low > high:
        low, high = min(every, key=lambda each: each[1] - each[0])
    return Offset(seconds=(low + high) / 2, error_s=(high - low) / 2)


def offsets(run: Run) -> Mapping[int, Offset]:
    """By rank, from the collectives of a run."""
    if not run.headers:
        return {}
    bounds: dict[tuple[int, int], list[Bounds]] = defaultdict(list)
    for each in run.collectives:
        if each.moving_s is not None:
            a = min(each.ranks)
            first = each.calls[a]
            for b in each.ranks:
                call = each.calls[b]
                if b != a and call.done is not None and first.done is not None:
                    bounds[a, b].append((call.posted - first.done, call.done - first.posted))
    near: dict[int, list[tuple[int, Offset]]] = defaultdict(list)
    for (a, b), found in bounds.items():
        offset = combined(found)
        near[a].append((b, offset))
        near[b].append((a, Offset(seconds=-offset.seconds, error_s=offset.error_s)))
    lowest = min(run.headers)
    best: dict[int, Offset] = {}
    queue = [(0.0, lowest, 0.0)]  # Dijkstra's: the way of least error
    while queue:
        error, rank, seconds = heapq.heappop(queue)
        if rank not in best:
            best[rank] = Offset(seconds=seconds, error_s=error)
            for other, offset in near[rank]:
                heapq.heappush(queue, (error + (offset.error_s or 0.0), other, seconds + offset.seconds))
    start = run.headers[lowest].started - run.headers[lowest].started_at
    for rank, header in run.headers.items():
        by_hosts = header.started - header.started_at - start
        best.setdefault(rank, Offset(seconds=by_hosts, error_s=None))
    return best
