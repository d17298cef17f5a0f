"""Collectives as steps: who sends which elements to whom, and when.

The same steps are carried out and costed, so that what is expected is what is sent. A place is an index into
the participants, and all have a vector of the same length, of which each owns a part (that may be empty).

A pattern says how each place gets all parts: an all-gather. Backwards, with sums in place of copies, it is a
reduce-scatter; the two one after the other are an all-reduce. Each part reaches each place once, on one way,
so that backwards everything is added once, and the owner's sum is the one that all get: the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..methods import CommunicationPattern, Operation

Groups = Sequence[Sequence[int]]
"""The places of each host."""
Part = tuple[int, int]
"""Elements from the first number up to, not with, the second."""
Send = tuple[int, int, list[int]]
"""From a place to another the parts of these places."""


@dataclass(frozen=True)
class Transfer:
    """Elements ``begin`` to ``end``, from one place to another."""

    source: int
    target: int
    begin: int
    end: int
    add: bool
    """Whether the target adds them to its own, or puts them in their place."""


Steps = list[list[Transfer]]
"""The transfers of a step read what was there before it; what a place receives is added in their order."""


def plan(
    operation: Operation,
    pattern: CommunicationPattern,
    edges: Sequence[int],
    hosts: Groups,
    order: Sequence[int] | None = None,
    chunks: int = 1,
) -> list[Steps]:
    """The steps of each chunk, which do not depend on those of another.

    Args:
        operation: ALL_REDUCE, ALL_GATHER or REDUCE_SCATTER.
        pattern: not ADAPTIVE.
        edges: place p owns the elements ``edges[p]`` to ``edges[p + 1]``; of an all-reduce, in which nobody
            owns anything, only the last one counts.
        hosts: the places of each host, for HIERARCHICAL.
        order: of the places in a ring, a tree or a butterfly; default: by number.
        chunks: number of chunks; those without elements are left out.
    """
    order = range(sum(map(len, hosts))) if order is None else order
    pieces: list[Steps] = []
    if operation is Operation.ALL_REDUCE:
        for begin, end in split(edges[-1], chunks):
            parts = [(begin + a, begin + b) for a, b in owners(pattern, end - begin, hosts, order)]
            pieces.append([*_scatter(pattern, parts, hosts, order), *gather(pattern, parts, hosts, order)])
    else:
        cuts = [[(a + x, a + y) for x, y in split(b - a, chunks)] for a, b in pairwise(edges)]
        for parts in map(list, zip(*cuts, strict=True)):
            build = _scatter if operation is Operation.REDUCE_SCATTER else gather
            pieces.append(build(pattern, parts, hosts, order))
    return [steps for steps in pieces if steps]


def gather(
    pattern: CommunicationPattern, parts: Sequence[Part], hosts: Groups, order: Sequence[int]
) -> Steps:
    """Each place gets the parts of all.

    * RING: each sends to the next in ``order``, P - 1 times, what it got last.
    * TREE: a binomial tree to the first place and back: few steps, all bytes in each.
    * BUTTERFLY: recursive doubling (Rabenseifner, 2004): the last exchange, of half of all parts, is between
      neighbours in ``order``, earlier and smaller ones between places farther away. Places beyond a power of
      two give theirs to one below, and get all from it.
    * HIERARCHICAL: each part goes once to each other host, and then from place to place inside it.
    """
    return [step for each in sends(pattern, hosts, order) if (step := _transfers(each, parts))]


def sends(pattern: CommunicationPattern, hosts: Groups, order: Sequence[int]) -> list[list[Send]]:
    """The steps of :func:`gather`, whatever the parts are."""
    build = {
        CommunicationPattern.RING: _ring,
        CommunicationPattern.TREE: _tree,
        CommunicationPattern.BUTTERFLY: _butterfly,
    }.get(pattern)
    return _hierarchical(hosts) if build is None else build(order)


def _scatter(
    pattern: CommunicationPattern, parts: Sequence[Part], hosts: Groups, order: Sequence[int]
) -> Steps:
    """A gather that runs backwards: what was copied is added where it came from."""
    order = order[::-1] if pattern is CommunicationPattern.RING else order  # each sends to the next here too
    steps = gather(pattern, parts, hosts, order)
    return [
        [Transfer(t.target, t.source, t.begin, t.end, add=True) for t in step] for step in reversed(steps)
    ]


def split(count: int, parts: int) -> list[Part]:
    """``count`` elements in ``parts`` of sizes that differ by one at most: begin and end of each."""
    return list(pairwise([count * part // parts for part in range(parts + 1)])) if parts else []


def owners(pattern: CommunicationPattern, count: int, hosts: Groups, order: Sequence[int]) -> list[Part]:
    """Which part each place sums in an all-reduce."""
    parts = [(0, 0)] * len(order)
    if pattern is CommunicationPattern.TREE:
        parts[order[0]] = (0, count)
    elif pattern is CommunicationPattern.HIERARCHICAL:
        for (begin, end), places in zip(split(count, len(hosts)), hosts, strict=True):
            for (a, b), place in zip(split(end - begin, len(places)), places, strict=True):
                parts[place] = (begin + a, begin + b)
    else:
        one_piece = _by_exchanges(order) if pattern is CommunicationPattern.BUTTERFLY else order
        for part, place in zip(split(count, len(order)), one_piece, strict=True):
            parts[place] = part
    return parts


def _ring(order: Sequence[int]) -> list[list[Send]]:
    size = len(order)
    return [
        [(order[i], order[(i + 1) % size], [order[(i - turn) % size]]) for i in range(size)]
        for turn in range(size - 1)
    ]


def _tree(order: Sequence[int]) -> list[list[Send]]:
    up: list[list[Send]] = []
    down: list[list[Send]] = []
    size, distance = len(order), 1
    while distance < size:
        pairs = [(i, i + distance) for i in range(0, size - distance, 2 * distance)]
        below = {child: order[child : child + distance] for _, child in pairs}
        up.append([(order[child], order[parent], list(below[child])) for parent, child in pairs])
        rest = {child: [place for place in order if place not in below[child]] for _, child in pairs}
        down.insert(0, [(order[parent], order[child], rest[child]) for parent, child in pairs])
        distance *= 2
    return [*up, *down]


def _butterfly(order: Sequence[int]) -> list[list[Send]]:
    size = 1 << (len(order).bit_length() - 1) if order else 0
    extra = range(size, len(order))
    owned = [[order[i]] + ([order[size + i]] if size + i < len(order) else []) for i in range(size)]
    found: list[list[Send]] = [[(order[i], order[i - size], [order[i]]) for i in extra]]
    distance = size // 2
    while distance:
        found.append([(order[i], order[i ^ distance], owned[i]) for i in range(size)])
        owned = [owned[min(i, i ^ distance)] + owned[max(i, i ^ distance)] for i in range(size)]
        distance //= 2
    found.append([(order[i - size], order[i], [p for p in order if p != order[i]]) for i in extra])
    return found


def _by_exchanges(order: Sequence[int]) -> list[int]:
    """The places so that what each has after any exchange of a butterfly is in one piece."""
    size = 1 << (len(order).bit_length() - 1)
    places = [[order[i], *order[size + i : size + i + 1]] for i in range(size)]
    while len(places) > 1:
        half = len(places) // 2
        places = [places[i] + places[i + half] for i in range(half)]
    return places[0]


def _hierarchical(hosts: Groups) -> list[list[Send]]:
    between: list[Send] = []
    held = {place: [place] for places in hosts for place in places}
    for places in hosts:
        for number, place in enumerate(places):
            for others in hosts:
                if others is not places:
                    peer = others[number % len(others)]
                    between.append((place, peer, [place]))
                    held[peer].append(place)
    inside = [
        (place, other, held[place])
        for places in hosts
        for place in places
        for other in places
        if other != place
    ]
    return [between, inside]


def _transfers(step: Sequence[Send], parts: Sequence[Part]) -> list[Transfer]:
    """In as few pieces as possible."""
    found = []
    for source, target, places in step:
        pieces: list[Part] = []
        for begin, end in sorted(parts[place] for place in places):
            if begin == end:
                continue
            if pieces and pieces[-1][1] == begin:
                pieces[-1] = (pieces[-1][0], end)
            else:
                pieces.append((begin, end))
        found += [Transfer(source, target, begin, end, add=False) for begin, end in pieces]
    return found
