"""Which operations, or chunks of them, go next. A pure function."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

MOST_COMPARED = 64
"""So many are compared by the load of their links: the most urgent and, of these, the oldest."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An operation that all of its ranks have submitted."""

    number: int
    """From 0 on, in the order in which operations were first submitted."""
    priority: float
    """The higher, the more urgent."""
    ranks: Sequence[int]
    hosts: Collection[int]
    """Those of the ranks."""
    nbytes: int
    """Of its next chunk."""


def next_cycle(
    waiting: Sequence[Waiting], most_bytes: int, used: Mapping[int, float] | None = None
) -> list[Waiting]:
    """What is carried out next, in this order; then it is asked again.

    The most urgent first; of equally urgent operations that whose hosts' links carry least of what goes
    before it, and of what others send; of these the oldest. A rank takes part in chunks of ``most_bytes`` in
    all, or in one that is larger: whatever becomes urgent waits for no more.

    Args:
        waiting: one chunk of each is considered.
        most_bytes: as said.
        used: share of a host's link that others use, from 0 to 1.
    """
    used = used or {}
    by_host: dict[int, int] = {}
    by_rank: dict[int, int] = {}
    left = heapq.nsmallest(MOST_COMPARED, waiting, key=lambda each: (-each.priority, each.number))
    chosen: list[Waiting] = []
    full: set[int] = set()

    def key(each: Waiting) -> tuple[float, float, int]:
        loads = (by_host.get(host, 0) / most_bytes + used.get(host, 0.0) for host in each.hosts)
        return -each.priority, max(loads, default=0.0), each.number

    while left:
        first = min(left, key=key)
        left.remove(first)
        carried = max((by_rank.get(rank, 0) for rank in first.ranks), default=0)
        if not full.isdisjoint(first.ranks) or (carried and carried + first.nbytes > most_bytes):
            full.update(first.ranks)  # nothing overtakes it there
            continue
        chosen.append(first)
        for rank in first.ranks:
            by_rank[rank] = by_rank.get(rank, 0) + max(first.nbytes, 1)
        for host in first.hosts:
            by_host[host] = by_host.get(host, 0) + first.nbytes
    return chosen
