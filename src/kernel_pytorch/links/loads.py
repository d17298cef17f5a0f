"""What a collective sends over each link, and what the links take for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .collectives.steps import Groups, Part, owners, sends, split
from .facts import MeasuredLinks
from .methods import CommunicationPattern, Operation

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Turn:
    """A step, or several that load the links alike."""

    sources: npt.NDArray[np.int64]
    """Rank that sends."""
    targets: npt.NDArray[np.int64]
    elements: Floats
    """In all of the steps together."""
    messages: npt.NDArray[np.int64]
    """In each of the steps."""
    steps: int = 1

    def reversed(self) -> Turn:
        """What was received is sent back."""
        return replace(self, sources=self.targets, targets=self.sources)


def turn(rows: Iterable[tuple[int, int, int, int]], steps: int = 1) -> Turn:
    """Of rows: source, target, elements, messages."""
    table = np.array([row for row in rows if row[2]], dtype=np.int64).reshape(-1, 4)
    return Turn(table[:, 0], table[:, 1], table[:, 2].astype(float), table[:, 3], steps)


def turns_of(
    operation: Operation,
    pattern: CommunicationPattern | None,
    count: int,
    hosts: Groups,
    order: Sequence[int],
    ranks: Sequence[int],
) -> list[Turn]:
    """The steps of one chunk, as :func:`.steps.plan` makes them, without listing their transfers.

    Args:
        operation: any; an all-to-all has no pattern.
        pattern: not ADAPTIVE.
        count: elements of the whole vector.
        hosts, order: of the places, as there.
        ranks: of the places.
    """
    size = len(ranks)
    if count == 0 or size == 1:
        return []
    if operation is Operation.ALL_TO_ALL:
        rows = [(rank, end - begin) for rank, (begin, end) in zip(ranks, split(count, size), strict=True)]
        return [
            turn((source, target, part, 1) for source in ranks for target, part in rows if target != source)
        ]
    assert pattern is not None
    parts = split(count, size)
    if operation is Operation.ALL_REDUCE:
        parts = owners(pattern, count, hosts, order)
    if pattern is CommunicationPattern.RING:
        gather, scatter = _ring(count, parts, order, ranks)
    else:
        sizes = _Sizes(parts)
        found = [
            turn((ranks[a], ranks[b], *sizes.of(places)) for a, b, places in step)
            for step in sends(pattern, hosts, order)
        ]
        gather = [each for each in found if len(each.sources)]
        scatter = [each.reversed() for each in reversed(gather)]
    return {
        Operation.ALL_GATHER: gather,
        Operation.REDUCE_SCATTER: scatter,
        Operation.ALL_REDUCE: [*scatter, *gather],
    }[operation]


def _ring(
    count: int, parts: Sequence[Part], order: Sequence[int], ranks: Sequence[int]
) -> tuple[list[Turn], list[Turn]]:
    """A gather and a scatter, of turns that are all alike: in all of them together a place sends the next one
    all parts but that one's, or all but its own."""
    size = len(order)
    pairs = [(order[i], order[(i + 1) % size]) for i in range(size)]
    without = [count - (end - begin) for begin, end in parts]
    return (
        [turn(((ranks[a], ranks[b], without[b], 1) for a, b in pairs), size - 1)],
        [turn(((ranks[a], ranks[b], without[a], 1) for a, b in pairs), size - 1)],
    )


class _Sizes:
    """Elements and messages of parts that are sent together: those that are neighbours are one message."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._elements = np.array([end - begin for begin, end in parts])
        line = sorted((begin, place) for place, (begin, end) in enumerate(parts) if begin < end)
        self._position = np.zeros(len(parts), dtype=np.int64)
        self._position[[place for _, place in line]] = np.arange(len(line))

    def of(self, places: list[int]) -> tuple[int, int]:
        elements = self._elements[places]
        if len(places) == 1:
            return int(elements[0]), 1
        line = np.sort(self._position[places][elements > 0])
        return int(elements.sum()), 1 + int((np.diff(line) > 1).sum())


class Carriers:
    """What the links take for each byte, and for a round trip. NaN: not measured."""

    def __init__(self, links: MeasuredLinks) -> None:
        count = len(links.hosts)
        self.host_of = np.array(links.host_of)
        self.pair_s = np.full((count, count), np.nan)
        self.message_s = np.zeros((count, count))
        """CPU time of one of its ranks; 0 where it was not measured."""
        for link in links.links:
            if link.gbit_s.value:
                self.pair_s[link.source, link.target] = 8e-9 / link.gbit_s.value
            if link.message_us is not None:
                self.message_s[link.source, link.target] = link.message_us.value / 2 * 1e-6
        self.inside_s = self.pair_s.diagonal().copy()
        np.fill_diagonal(self.pair_s, np.nan)
        between = np.where(np.isnan(self.pair_s), np.inf, self.pair_s)
        self.out_s, self.in_s = between.min(axis=1), between.min(axis=0)
        self.trip_s = np.full((links.size, links.size), np.nan)
        for pair in links.pairs:
            trip = pair.round_trip_us.value * 1e-6
            self.trip_s[pair.a, pair.b] = self.trip_s[pair.b, pair.a] = trip
