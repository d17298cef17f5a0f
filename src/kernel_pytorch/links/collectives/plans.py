"""How a collective of a pattern and size is carried out in a group, and what it is expected to take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from ..cost import expected_times
from ..facts import Figure, Hosts, MeasuredLinks, host_of
from ..methods import CommunicationPattern, Operation
from ..topology import regrouped
from .groups import Group
from .run import Program, Sent, program
from .steps import plan

_UNKNOWN_CHUNK_BYTES = 1 << 20
"""Where the links are not known."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A collective, ready to be run."""

    program: Program
    expected_s: float | None
    """None: not known."""

    def sent(self, element_bytes: int, group: Group) -> Sent:
        """What this rank sends, nothing being encoded."""
        found = Sent()
        for transfer in (transfer for turn in self.program.sends for transfer in turn):
            nbytes = (transfer.end - transfer.begin) * element_bytes
            found.to_all += nbytes
            if group.host_of[transfer.source] != group.host_of[transfer.target]:
                found.to_other_hosts += nbytes
        return found


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a collective is about."""

    operation: Operation
    pattern: CommunicationPattern
    edges: tuple[int, ...]
    """As of :func:`.steps.plan`."""
    element_bytes: int
    wire_bytes: float | None = None
    """Bytes of an element in the format in which it travels; None: it travels as it is."""
    whole: bool = False
    """Whether in one chunk."""


class Plans:
    """Those of a group, kept for the next call."""

    def __init__(self, group: Group, chunk_bytes: int, overlap: bool) -> None:
        """``chunk_bytes``: of the largest chunk."""
        self._group, self._chunk_bytes, self._overlap = group, chunk_bytes, overlap
        self.of = lru_cache(maxsize=256)(self._of)
        """For a :class:`Shape`."""

    def host_of(self, pattern: CommunicationPattern) -> tuple[int, ...]:
        """By place: what travels between different ones is encoded. Without hierarchy, that is all."""
        return host_of(self._hosts(pattern))

    def _hosts(self, pattern: CommunicationPattern) -> Hosts:
        if pattern is CommunicationPattern.HIERARCHICAL:
            return self._group.links.hosts
        return tuple((place,) for place in range(self._group.size))

    def _of(self, shape: Shape) -> Planned:
        encoded, order = shape.wire_bytes is not None, self._group.order
        hosts = self._hosts(shape.pattern) if encoded else self._group.links.hosts
        # Each encoded part goes straight to who sums it: it would lose more at each stop.
        pattern = CommunicationPattern.HIERARCHICAL if encoded else shape.pattern
        chunks, seconds = self._chunks(shape, pattern, hosts)
        pieces = plan(shape.operation, pattern, shape.edges, hosts, order, chunks)
        return Planned(program=program(pieces, self._group.place, overlap=self._overlap), expected_s=seconds)

    def _chunks(self, shape: Shape, pattern: CommunicationPattern, hosts: Hosts) -> tuple[int, float | None]:
        """How many, and the seconds that they are expected to take."""
        links = self._group.links
        if shape.wire_bytes is not None:
            links = _faster(links, shape.element_bytes / shape.wire_bytes)
            if hosts != links.hosts:
                links = regrouped(links, hosts)
        nbytes = shape.edges[-1] * shape.element_bytes
        (found,) = expected_times(
            shape.operation,
            nbytes,
            links,
            patterns=[pattern],
            order=self._group.order,
            element_bytes=shape.element_bytes,
            chunk_bytes=max(nbytes, 1) if shape.whole else self._chunk_bytes,
            chunks=1 if shape.whole or not self._overlap else None,
        )
        if shape.whole:
            return 1, found.seconds
        least = -(-nbytes // self._chunk_bytes)
        wanted = nbytes // _UNKNOWN_CHUNK_BYTES if found.seconds is None else found.chunks
        return max(wanted, least, 1), found.seconds


def _faster(links: MeasuredLinks, times: float) -> MeasuredLinks:
    """Links between hosts, as they seem to what takes fewer bytes on the way."""

    def scaled(figure: Figure) -> Figure:
        return replace(figure, value=figure.value * times, low=figure.low * times, high=figure.high * times)

    return replace(
        links,
        links=tuple(
            link if link.source == link.target else replace(link, gbit_s=scaled(link.gbit_s))
            for link in links.links
        ),
    )
