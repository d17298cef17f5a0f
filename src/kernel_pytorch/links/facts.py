"""What is known of the links between the ranks of a group, as data.

A rank below is a rank in the group, a host an index into :attr:`MeasuredLinks.hosts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

Hosts = tuple[tuple[int, ...], ...]
"""The ranks of each host, ascending; hosts in the order of their first ranks."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A median with its 95 % interval; of fewer than six samples, with their range."""

    value: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class HostLink:
    """What goes from one host to another, neither sending anything else, or between ranks of one host."""

    source: int
    target: int
    gbit_s: Figure
    message_us: Figure | None = None
    """CPU time, of both ends together, for one message of a few bytes; None: not measured."""
    byte_ns: Figure | None = None
    """And for each byte; None: not measured, or too little to be told apart from the message's own."""


@dataclass(frozen=True, kw_only=True)
class SharedLink:
    """What two streams that leave a host at the same time get of its link."""

    source: int
    targets: tuple[int, int]
    """Equal: between two pairs of ranks of the same two hosts."""
    share: Figure
    """Of the rates that the two have alone: 0.5 where they share a link, 1 where neither slows the other."""


@dataclass(frozen=True, kw_only=True)
class RankPair:
    """A small message from one rank to another and back."""

    a: int
    b: int
    round_trip_us: Figure


@dataclass(frozen=True, kw_only=True)
class MeasuredLinks:
    """The links of a group."""

    hosts: Hosts
    basis: str
    """measured, saved, given or default: where the figures are from."""
    links: tuple[HostLink, ...] = ()
    """In both directions; those that were not measured are missing."""
    pairs: tuple[RankPair, ...] = ()
    """Each pair once, ``a`` before ``b``."""
    shared: tuple[SharedLink, ...] = ()
    """Where hosts have two ranks or more, or two others to send to."""
    racks: tuple[tuple[int, ...], ...] = ()
    """The hosts of each rack; none: they do not fall into racks clearly (:func:`.racks.racks_of`)."""
    names: tuple[str, ...] = ()
    """Of the hosts, for people; none: not known."""
    seconds: float | None = None
    """What measuring took."""

    @cached_property
    def size(self) -> int:
        """Number of ranks."""
        return sum(map(len, self.hosts))

    @cached_property
    def host_of(self) -> tuple[int, ...]:
        """Host of each rank."""
        return host_of(self.hosts)

    def gbit_s(self, source: int, target: int) -> float | None:
        """Rate from a host to a host, or inside one; None: not measured."""
        return self._rates.get((source, target))

    def host_round_trip_us(self, a: int, b: int) -> Figure | None:
        """The shortest between ranks of two hosts, or of one; None: not measured."""
        hosts = sorted((a, b))
        found = [
            pair.round_trip_us
            for pair in self.pairs
            if sorted((self.host_of[pair.a], self.host_of[pair.b])) == hosts
        ]
        return min(found, key=lambda figure: figure.value, default=None)

    def round_trip_us(self, a: int, b: int) -> float | None:
        """Of a small message between two ranks; None: not measured."""
        return self._round_trips.get((min(a, b), max(a, b)))

    @cached_property
    def _rates(self) -> dict[tuple[int, int], float]:
        return {(link.source, link.target): link.gbit_s.value for link in self.links}

    @cached_property
    def _round_trips(self) -> dict[tuple[int, int], float]:
        return {(pair.a, pair.b): pair.round_trip_us.value for pair in self.pairs}


def host_of(hosts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Host of each rank.

    Raises:
        ValueError: the hosts do not have each of their ranks, from 0 on, exactly once.
    """
    found = {rank: host for host, ranks in enumerate(hosts) for rank in ranks}
    if sorted(found) != list(range(sum(map(len, hosts)))):
        raise ValueError(f"hosts must have the ranks from 0 on, each once, got {hosts}")
    return tuple(found[rank] for rank in range(len(found)))
