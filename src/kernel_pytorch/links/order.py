"""In which order ranks take the places of a pattern, so that the busiest link between hosts carries least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from .facts import MeasuredLinks

MOST_ASSIGNMENTS = 20_000
"""All assignments of places to hosts are tried if they are no more."""
MOST_EXCHANGES = 20_000
"""Else so many exchanges of two places are tried at most, from each of two starts."""

Bytes = npt.NDArray[np.float64]
_Score = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class RankOrder:
    """Who takes which place."""

    ranks: tuple[int, ...]
    """For each place the rank that takes it."""
    busiest_link_s: float | None
    """Seconds in which the busiest link carries what it has to; None: a rate is not known."""
    before_s: float | None
    """The same with rank 0 at place 0 and so on."""
    crossing_bytes: float
    """What is sent between hosts in all."""
    before_bytes: float
    exact: bool
    """Whether all assignments of places to hosts were compared, and not only exchanges of two places."""


def rank_order(links: MeasuredLinks, traffic: npt.ArrayLike | None = None) -> RankOrder:
    """The order of least time on the busiest link; of equal ones that which sends least between hosts.

    A host's link carries all that the host sends, or receives, to and from other hosts; the two directions do
    not disturb each other. Its rate is that of the host's fastest pair; a pair of hosts that is slower limits
    what goes between the two. Where no rate is known, all links count as equal. Ranks of one host are alike:
    they keep their order.

    Args:
        links: of the group.
        traffic: [P, P], bytes from the place of the row to that of the column; default: a ring, in which each
            place sends the same to the next.

    Raises:
        ValueError: the traffic has another shape, or is negative or not finite somewhere.
    """
    traffic = _ring(links.size) if traffic is None else checked_traffic(traffic, links.size)
    cost = _Cost(links, traffic)
    given = np.array(links.host_of)
    exact = _assignments(links) <= MOST_ASSIGNMENTS
    tried = (
        map(np.array, _all(tuple(map(len, links.hosts))))
        if exact
        else (_exchanged(cost, start) for start in (given, np.sort(given)))
    )
    before = cost.score(given)
    best, score = given, before
    for assignment in tried:
        new = cost.score(assignment)
        if _less(new, score):
            best, score = assignment, new
    waiting = [list(ranks) for ranks in links.hosts]
    known = cost.known
    return RankOrder(
        ranks=tuple(waiting[host].pop(0) for host in best),
        busiest_link_s=score[0] if known else None,
        before_s=before[0] if known else None,
        crossing_bytes=score[1],
        before_bytes=before[1],
        exact=exact,
    )


class _Cost:
    """Of assignments: the host of each place."""

    def __init__(self, links: MeasuredLinks, traffic: Bytes) -> None:
        self.traffic, count = traffic, len(links.hosts)
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        rates = {pair: links.gbit_s(*pair) for pair in pairs}
        self.known = all(rate for rate in rates.values())
        # Seconds for each byte.
        self._pair_s, self._out_s, self._in_s = np.zeros((count, count)), np.zeros(count), np.zeros(count)
        for (a, b), rate in rates.items():
            self._pair_s[a, b] = 8e-9 / rate if self.known and rate else 1.0
        for host in range(count):
            others = [other for other in range(count) if other != host]
            self._out_s[host] = min((self._pair_s[host, other] for other in others), default=0.0)
            self._in_s[host] = min((self._pair_s[other, host] for other in others), default=0.0)

    def on_host(self, assignment: npt.NDArray[np.int64]) -> Bytes:
        """[P, H]: 1 where a place is on a host."""
        on: Bytes = (assignment[:, None] == np.arange(len(self._out_s))).astype(np.float64)
        return on

    def score(self, assignment: npt.NDArray[np.int64]) -> _Score:
        """Seconds of the busiest link, and bytes between hosts."""
        on = self.on_host(assignment)
        return self.score_of(on.T @ self.traffic @ on)

    def score_of(self, carried: Bytes) -> _Score:
        """The same, of the bytes from host to host, [H, H]."""
        between = carried.copy()
        np.fill_diagonal(between, 0.0)
        busiest = max(
            (between * self._pair_s).max(initial=0.0),
            (between.sum(axis=1) * self._out_s).max(initial=0.0),
            (between.sum(axis=0) * self._in_s).max(initial=0.0),
        )
        return float(busiest), float(between.sum())


def _less(new: _Score, old: _Score) -> bool:
    """Whether a score is better by more than rounding."""
    for a, b in zip(new, old, strict=True):
        if not math.isclose(a, b, rel_tol=1e-9, abs_tol=0.0):
            return a < b
    return False


class _Exchanges:
    """An assignment, and the scores of those in which two places are exchanged."""

    def __init__(self, cost: _Cost, assignment: npt.NDArray[np.int64]) -> None:
        self._cost = cost
        self.assignment: npt.NDArray[np.int64] = assignment.copy()
        self._add_up()

    def _add_up(self) -> None:
        on = self._cost.on_host(self.assignment)
        # [P, H]: what each place sends to each host, and receives from it.
        self._sent, self._received = self._cost.traffic @ on, self._cost.traffic.T @ on
        self._carried = on.T @ self._sent
        self.score = self._cost.score_of(self._carried)

    def score_with(self, i: int, j: int) -> _Score:
        """If two places were exchanged; within rounding."""
        a, b, traffic = self.assignment[i], self.assignment[j], self._cost.traffic
        sent, received = self._sent[i] - self._sent[j], self._received[i] - self._received[j]
        carried = self._carried.copy()
        carried[b] += sent
        carried[a] -= sent
        carried[:, b] += received
        carried[:, a] -= received
        # What i and j send each other has moved at both ends.
        both = traffic[i, i] + traffic[j, j] - traffic[i, j] - traffic[j, i]
        carried[[a, b], [a, b]] += both
        carried[[a, b], [b, a]] -= both
        return self._cost.score_of(carried)

    def exchange(self, i: int, j: int) -> None:
        self.assignment[[i, j]] = self.assignment[[j, i]]
        self._add_up()


def _exchanged(cost: _Cost, start: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Exchange two places as long as that makes the assignment better and trials are left."""
    found, left = _Exchanges(cost, start), MOST_EXCHANGES
    improved = True
    while improved:
        improved = False
        for i, j in combinations(range(len(start)), 2):
            if found.assignment[i] == found.assignment[j]:
                continue
            if left == 0:
                return found.assignment
            left -= 1
            before = found.score
            if _less(found.score_with(i, j), before):
                found.exchange(i, j)
                if _less(found.score, before):
                    improved = True
                else:  # it was rounding
                    found.exchange(i, j)
    return found.assignment


def _assignments(links: MeasuredLinks) -> int:
    count, left = 1, links.size
    for ranks in links.hosts:
        count *= math.comb(left, len(ranks))
        left -= len(ranks)
    return count


def _all(sizes: Sequence[int]) -> Iterator[list[int]]:
    """All ways to give places to hosts of these sizes, in lexicographic order."""
    left: list[int] = list(sizes)
    chosen: list[int] = []

    def extend() -> Iterator[list[int]]:
        if not any(left):
            yield chosen
            return
        for host, free in enumerate(left):
            if free:
                left[host] -= 1
                chosen.append(host)
                yield from extend()
                chosen.pop()
                left[host] += 1

    yield from extend()


def _ring(size: int) -> Bytes:
    places: Bytes = np.eye(size) if size > 1 else np.zeros((size, size))
    return np.roll(places, 1, axis=1)


def checked_traffic(traffic: npt.ArrayLike, size: int) -> Bytes:
    """A matrix of bytes between places.

    Raises:
        ValueError: it has another shape than [size, size], or is negative or not finite somewhere.
    """
    traffic = np.asarray(traffic, dtype=np.float64)
    if traffic.shape != (size, size):
        raise ValueError(
            f"traffic must be of shape {(size, size)}, a row for each place, got {traffic.shape}"
        )
    if not (np.isfinite(traffic) & (traffic >= 0)).all():
        raise ValueError("traffic must have bytes, finite and not negative")
    return traffic
