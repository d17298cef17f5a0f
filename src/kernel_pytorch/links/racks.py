"""Which hosts are in one rack, as far as measured links tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from .facts import Figure, MeasuredLinks

_APART = 1.5
"""The worst pair inside racks is better than the best one between racks by this factor."""

Racks = tuple[tuple[int, ...], ...]


def racks_of(links: MeasuredLinks) -> Racks:
    """The hosts of each rack; none where that is not clear.

    It is clear where the rates of all pairs of hosts fall into two classes, one a multiple of the other even
    at the ends of their intervals, and the fast pairs are exactly those inside groups of hosts; else, where
    the round trips do. Two groups must have two hosts or more: a host that is far from all others is a slow
    host, not a rack.
    """
    count = len(links.hosts)
    rates = {(link.source, link.target): link.gbit_s for link in links.links}

    def slower_way(a: int, b: int) -> tuple[float, float] | None:
        ways = [rates[pair] for pair in ((a, b), (b, a)) if pair in rates]
        return _interval(min(ways, key=lambda figure: figure.value)) if len(ways) == 2 else None

    def inverse_trip(a: int, b: int) -> tuple[float, float] | None:
        trip = links.host_round_trip_us(a, b)
        return None if trip is None or trip.low <= 0 else (1 / trip.high, 1 / trip.low)

    return _groups(count, slower_way) or _groups(count, inverse_trip)


def _interval(figure: Figure) -> tuple[float, float]:
    return figure.low, figure.high


def _groups(count: int, closeness: Callable[[int, int], tuple[float, float] | None]) -> Racks:
    """Groups of hosts that are closer to each other, low and high, than to those of other groups."""
    known = {pair: closeness(*pair) for pair in combinations(range(count), 2)}
    close = {pair: interval for pair, interval in known.items() if interval is not None}
    if len(close) < len(known):
        return ()
    best: tuple[float, Racks] = (_APART, ())
    beyond = 0.0  # the closest pair that is not inside
    by_low = sorted(close.items(), key=lambda item: item[1][0])
    for number, (_, (low, high)) in enumerate(by_low):
        if beyond and low / beyond > best[0]:
            inside = sorted(pair for pair, _ in by_low[number:])
            racks = _components(count, inside)
            whole = inside == sorted(pair for rack in racks for pair in combinations(rack, 2))
            if whole and sum(len(rack) > 1 for rack in racks) > 1:
                best = (low / beyond, racks)
        beyond = max(beyond, high)
    return best[1]


def _components(count: int, pairs: Sequence[tuple[int, int]]) -> Racks:
    rack_of = list(range(count))
    for a, b in pairs:
        old, new = sorted((rack_of[a], rack_of[b]))[::-1]
        rack_of = [new if rack == old else rack for rack in rack_of]
    return tuple(
        tuple(host for host in range(count) if rack_of[host] == rack) for rack in sorted(set(rack_of))
    )
