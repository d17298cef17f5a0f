"""How long a collective is expected to take. Pure functions of its steps and of the links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .collectives.steps import Steps
from .facts import MeasuredLinks
from .loads import Carriers, Floats, Turn, turn, turns_of
from .methods import PATTERNS, CommunicationPattern, Operation

MOST_CHUNKS = 64
"""More are only cut where a chunk would else be too large."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a collective is expected to take and to send."""

    seconds: float | None
    """None: a link that it uses was not measured."""
    busiest_s: float | None
    """Of this, what the busiest link is busy."""
    round_trips_s: float | None
    """Of this, waiting for each other."""
    messages_s: float | None = None
    """Of this, what messages cost the rank that has most of them."""
    sent_bytes: tuple[float, ...]
    """By host, to other hosts."""
    received_bytes: tuple[float, ...]
    """By host, from other hosts."""
    steps: int
    """Of a chunk."""
    chunks: int = 1
    pattern: CommunicationPattern | None = None
    """None: of steps that were given, or of an all-to-all, which has none."""


def expected_time(
    pattern: CommunicationPattern | str,
    op: Operation | str,
    nbytes: int,
    links: MeasuredLinks,
    *,
    participants: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
    element_bytes: float = 4.0,
    chunk_bytes: int = 64 << 20,
    chunks: int | None = None,
    message_us: float | None = None,
) -> Expected:
    """What a collective is expected to take.

    Args:
        pattern: ADAPTIVE is the fastest of the others. An all-to-all is one step, whatever the pattern.
        op: by torch's name.
        nbytes: of the whole vector: the tensor of an all-reduce, the output of an all-gather, the input of a
            reduce-scatter or of an all-to-all.
        links: of the ranks.
        participants: some of the ranks, the first of them place 0; default: all.
        order: of the places in a ring, a tree or a butterfly; default: host by host.
        element_bytes: sent for each element.
        chunk_bytes: no chunk is larger.
        chunks: number of them; default: that of the least expected time.
        message_us: CPU time that a message costs each of its two ranks; default: as measured, else none.

    Raises:
        ValueError: the pattern or the operation does not exist, or a number is out of its range.
    """
    pattern = CommunicationPattern(pattern)
    wanted = PATTERNS if pattern is CommunicationPattern.ADAPTIVE else (pattern,)
    found = expected_times(
        op,
        nbytes,
        links,
        patterns=wanted,
        participants=participants,
        order=order,
        element_bytes=element_bytes,
        chunk_bytes=chunk_bytes,
        chunks=chunks,
        message_us=message_us,
    )
    return found[0]


def expected_times(
    op: Operation | str,
    nbytes: int,
    links: MeasuredLinks,
    *,
    patterns: Sequence[CommunicationPattern] = PATTERNS,
    participants: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
    element_bytes: float = 4.0,
    chunk_bytes: int = 64 << 20,
    chunks: int | None = None,
    message_us: float | None = None,
) -> list[Expected]:
    """:func:`expected_time` of some patterns, the fastest first.

    Of those whose time is not known, that of the least busy host; of equal ones the hierarchical one.

    Args:
        patterns: without ADAPTIVE.
        op, nbytes, links, participants, order, element_bytes, chunk_bytes, chunks, message_us: as
            there.

    Raises:
        ValueError: as there.
    """
    operation = Operation(op)
    if nbytes < 0:
        raise ValueError(f"nbytes must not be negative, got {nbytes}")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks must be at least 1, got {chunks}")
    ranks = _participants(participants, links.size)
    hosts = _hosts(ranks, links)
    order = [place for places in hosts for place in places] if order is None else order
    if sorted(order) != list(range(len(ranks))):
        raise ValueError(f"order must have the places 0 to {len(ranks) - 1}, each once, got {order}")
    count, carriers = -int(-nbytes // element_bytes), Carriers(links)
    if message_us is not None:
        carriers.message_s[:] = message_us * 1e-6
    least = max(1, -(-nbytes // chunk_bytes))
    found = []
    # One exchange, whatever the pattern.
    each = (None,) if operation is Operation.ALL_TO_ALL else patterns
    for pattern in each:
        totals = _Totals(carriers, element_bytes)
        for step in turns_of(operation, pattern, count, hosts, order, ranks):
            totals.add(step)
        number = totals.best_chunks(least, count) if chunks is None else chunks
        found.append(replace(totals.expected(number), pattern=pattern))
    return sorted(found, key=_rank_of)


def expected(steps: Steps, links: MeasuredLinks, element_bytes: float, chunks: int = 1) -> Expected:
    """The time of steps between the ranks of a group.

    A step takes what its busiest link takes, and a round trip between those of its pairs that are farthest
    apart. A host's link carries all that the host sends to others, or receives from them, at the rate of its
    fastest pair; a pair at its own; what stays inside a host, at the rate of its memory. In chunks, the steps
    of one overlap with those of others on other links: then the busiest link's time is left, and that of one
    chunk on the others. Each chunk begins a step later than the one before.

    Args:
        steps: between ranks of the group.
        links: of the group.
        element_bytes: sent for each element.
        chunks: number that the elements are cut into.

    Raises:
        ValueError: ``chunks`` is not positive.
    """
    if chunks < 1:
        raise ValueError(f"chunks must be at least 1, got {chunks}")
    carriers = Carriers(links)
    carriers.message_s[:] = 0.0
    totals = _Totals(carriers, element_bytes)
    for step in steps:
        totals.add(turn((t.source, t.target, t.end - t.begin, 1) for t in step))
    return totals.expected(chunks)


class _Totals:
    """The sum of steps."""

    def __init__(self, carriers: Carriers, element_bytes: float) -> None:
        self._carriers, self._element_bytes = carriers, element_bytes
        self._hosts = len(carriers.pair_s)
        self._busy_s: dict[str, Floats] = {}
        self._between = np.zeros((self._hosts, self._hosts))
        self._in_turn_s = self._waiting_s = self._longest_trip_s = 0.0
        self._messages_s, self._steps = 0.0, 0

    def add(self, step: Turn) -> None:
        links, count = self._carriers, self._hosts
        a, b = links.host_of[step.sources], links.host_of[step.targets]
        carried = step.elements * self._element_bytes
        flat: Floats = np.bincount(a * count + b, carried, count * count).astype(np.float64)
        load = flat.reshape(count, count)
        inside = load.diagonal().copy()
        np.fill_diagonal(load, 0.0)
        busy = {
            "inside": _times(inside, links.inside_s),
            "pair": _times(load, links.pair_s),
            "out": _times(load.sum(axis=1), links.out_s),
            "in": _times(load.sum(axis=0), links.in_s),
        }
        self._between += load
        self._busy_s = {name: self._busy_s.get(name, 0.0) + each for name, each in busy.items()}
        self._in_turn_s += float(max(each.max(initial=0.0) for each in busy.values()))
        trip = float(links.trip_s[step.sources, step.targets].max(initial=0.0))
        self._waiting_s += step.steps * trip
        self._longest_trip_s = max(self._longest_trip_s, trip)
        cost_s = step.messages * links.message_s[a, b]
        ends = [np.bincount(each, cost_s).max(initial=0.0) for each in (step.sources, step.targets)]
        self._messages_s += step.steps * float(max(ends))
        self._steps += step.steps

    def best_chunks(self, least: int, count: int) -> int:
        """The fewest, or twice that, and so on: the first within 1 % of the least expected time."""
        numbers = [least]
        while numbers[-1] * 2 <= min(MOST_CHUNKS, count):
            numbers.append(numbers[-1] * 2)
        times = [self.expected(number).seconds for number in numbers]
        shortest = min((seconds for seconds in times if seconds is not None), default=0.0)
        for number, seconds in zip(numbers, times, strict=True):
            if seconds is not None and seconds <= 1.01 * shortest:
                return number
        return least

    def expected(self, chunks: int) -> Expected:
        busiest = float(max((each.max(initial=0.0) for each in self._busy_s.values()), default=0.0))
        waiting = self._waiting_s + (chunks - 1) * self._longest_trip_s
        messages = chunks * self._messages_s
        seconds = busiest + (self._in_turn_s - busiest) / chunks + waiting + messages
        known = bool(np.isfinite(seconds))
        return Expected(
            seconds=seconds if known else None,
            busiest_s=busiest if known else None,
            round_trips_s=waiting if known else None,
            messages_s=messages if known else None,
            sent_bytes=tuple(self._between.sum(axis=1).tolist()),
            received_bytes=tuple(self._between.sum(axis=0).tolist()),
            steps=self._steps,
            chunks=chunks,
        )


def _times(load: Floats, seconds: Floats) -> Floats:
    """What nothing is sent over takes no time, measured or not."""
    each = np.where(np.isfinite(seconds), seconds, np.inf)
    found: Floats = np.multiply(load, each, where=load > 0, out=np.zeros_like(load))
    return found


def _participants(participants: Sequence[int] | None, size: int) -> list[int]:
    ranks = list(range(size)) if participants is None else list(participants)
    if not ranks or len(set(ranks)) < len(ranks) or not all(0 <= rank < size for rank in ranks):
        raise ValueError(
            f"participants must be some of the ranks 0 to {size - 1}, each once, got {participants}"
        )
    return ranks


def _hosts(ranks: Sequence[int], links: MeasuredLinks) -> list[list[int]]:
    """The places of each host that has any."""
    found: dict[int, list[int]] = {}
    for place, rank in enumerate(ranks):
        found.setdefault(links.host_of[rank], []).append(place)
    return list(found.values())


def _rank_of(found: Expected) -> tuple[bool, float, float, int]:
    return (
        found.seconds is None,
        found.seconds or 0.0,
        max(*found.sent_bytes, *found.received_bytes, 0.0),
        -PATTERNS.index(found.pattern) if found.pattern else 0,
    )
