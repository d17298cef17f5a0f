"""How long the steps of a collective are expected to take. A pure function of them and of the links."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .collectives.steps import Steps, Transfer
from .facts import MeasuredLinks

_Resource = tuple[str, int, int]
"""What carries bytes: ("out" or "in", host, host), ("inside", host, host), ("pair", source, target)."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What steps are expected to take and to send."""

    seconds: float | None
    """None: a link that they use was not measured."""
    busiest_s: float | None
    """Of this, what the busiest link is busy."""
    round_trips_s: float | None
    """Of this, waiting for each other."""
    sent_bytes: tuple[float, ...]
    """By host, to other hosts."""
    received_bytes: tuple[float, ...]
    """By host, from other hosts."""
    steps: int


def expected(steps: Steps, links: MeasuredLinks, element_bytes: float, chunks: int = 1) -> Expected:
    """The time of steps between the ranks of a group.

    A step takes what its busiest link takes, and a round trip between those of its pairs that are farthest
    apart. A host's link carries all that the host sends to others, or receives from them, at the rate of its
    fastest pair; a pair at its own; what stays inside a host, at the rate of its memory. In chunks, the steps
    of one overlap with those of others on other links: then the busiest link's time is left, and that of one
    chunk on the others.

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
    rates = _rates(links)
    total: dict[_Resource, float] = defaultdict(float)
    in_turn = waiting = 0.0
    known = True
    for step in steps:
        load = _load(step, links, element_bytes)
        known = known and all(rates.get(resource) is not None for resource in load)
        trips = [links.round_trip_us(t.source, t.target) for t in step]
        known = known and None not in trips
        if known:
            seconds = {resource: carried * (rates[resource] or 0.0) for resource, carried in load.items()}
            for resource, busy in seconds.items():
                total[resource] += busy
            in_turn += max(seconds.values())
            waiting += max(trip or 0.0 for trip in trips) * 1e-6
    sent, received = [0.0] * len(links.hosts), [0.0] * len(links.hosts)
    for step in steps:
        for transfer in step:
            a, b = links.host_of[transfer.source], links.host_of[transfer.target]
            if a != b:
                carried = (transfer.end - transfer.begin) * element_bytes
                sent[a] += carried
                received[b] += carried
    busiest = max(total.values(), default=0.0)
    return Expected(
        seconds=busiest + (in_turn - busiest) / chunks + waiting if known else None,
        busiest_s=busiest if known else None,
        round_trips_s=waiting if known else None,
        sent_bytes=tuple(sent),
        received_bytes=tuple(received),
        steps=len(steps),
    )


def _load(step: list[Transfer], links: MeasuredLinks, element_bytes: float) -> Mapping[_Resource, float]:
    """Bytes by what carries them."""
    load: dict[_Resource, float] = defaultdict(float)
    for transfer in step:
        carried = (transfer.end - transfer.begin) * element_bytes
        a, b = links.host_of[transfer.source], links.host_of[transfer.target]
        if a == b:
            load["inside", a, a] += carried
        else:
            load["out", a, a] += carried
            load["in", b, b] += carried
            load["pair", a, b] += carried
    return load


def _rates(links: MeasuredLinks) -> Mapping[_Resource, float | None]:
    """Seconds for each byte, by what carries it; None: not measured."""
    count = len(links.hosts)
    found: dict[_Resource, float | None] = {}
    for host in range(count):
        others = [other for other in range(count) if other != host]
        found["inside", host, host] = _seconds(links.gbit_s(host, host))
        found["out", host, host] = _least(_seconds(links.gbit_s(host, other)) for other in others)
        found["in", host, host] = _least(_seconds(links.gbit_s(other, host)) for other in others)
        found |= {("pair", host, other): _seconds(links.gbit_s(host, other)) for other in others}
    return found


def _seconds(gbit_s: float | None) -> float | None:
    return None if not gbit_s else 8e-9 / gbit_s


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
