"""An all-reduce as steps: who sends which elements to whom, and when.

The same steps are carried out and costed, so that what is expected is what is sent. A place is an index
into the participants. Parts that a place receives in one step are added, or put, in the order of their
transfers, and each part is summed at one place before any other has it: all end with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Groups = Sequence[Sequence[int]]
"""The places of each host."""


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
"""The transfers of a step read what was there before it."""


def ring(order: Sequence[int], count: int) -> Steps:
    """Each sends to the next, 2 (P - 1) times a P-th: as few bytes as an all-reduce can do with.

    Args:
        order: the places around the ring.
        count: number of elements.
    """
    size = len(order)
    parts = split(count, size)
    steps: Steps = []
    for turn in range(2 * (size - 1)):
        step = []
        for i, source in enumerate(order):
            begin, end = parts[(i - turn) % size]
            step.append(Transfer(source, order[(i + 1) % size], begin, end, add=turn < size - 1))
        steps.append(step)
    return _without_empty(steps)


def tree(order: Sequence[int], count: int) -> Steps:
    """A binomial tree to the first place and back: few steps, all bytes in each."""
    up: Steps = []
    distance = 1
    while distance < len(order):
        step = [
            Transfer(order[i + distance], order[i], 0, count, add=True)
            for i in range(0, len(order) - distance, 2 * distance)
        ]
        up.append(step)
        distance *= 2
    down = [[Transfer(t.target, t.source, t.begin, t.end, add=False) for t in step] for step in reversed(up)]
    return _without_empty([*up, *down])


def butterfly(order: Sequence[int], count: int) -> Steps:
    """Recursive halving and doubling (Rabenseifner, 2004): as few bytes as the ring, log2 as many steps.

    The first exchange, of half of all elements, is with the next place in ``order``, later and smaller ones
    are with places farther away. Places beyond a power of two give all to one below, and get the result.
    """
    size = 1 << (len(order).bit_length() - 1) if order else 0
    fold = [
        [Transfer(order[size + i], order[i], 0, count, add=True) for i in range(len(order) - size)],
    ]
    unfold = [[Transfer(t.target, t.source, 0, count, add=False) for t in fold[0]]]
    halves: Steps = []
    doubles: Steps = []
    owned = [(0, count)] * size
    distance = 1
    while distance < size:
        step, back = [], []
        new = list(owned)
        for i in range(size):
            j = i ^ distance
            begin, end = owned[i]
            middle = (begin + end) // 2
            keep, give = ((begin, middle), (middle, end)) if i < j else ((middle, end), (begin, middle))
            step.append(Transfer(order[i], order[j], *give, add=True))
            back.append(Transfer(order[i], order[j], *keep, add=False))
            new[i] = keep
        owned = new
        halves.append(step)
        doubles.insert(0, back)
        distance *= 2
    return _without_empty([*fold, *halves, *doubles, *unfold])


def hierarchical(hosts: Groups, count: int) -> Steps:
    """Inside each host first, then between hosts, then inside: the fewest bytes and steps between hosts.

    On each host as many places as the smallest host has hold a part each. They get it from all of their host,
    exchange it with those that hold the same part on the other hosts, and give it to all of their host.
    """
    holders = min(map(len, hosts), default=0)
    parts = split(count, holders)
    inside, outside, back, home = [], [], [], []
    for places in hosts:
        for holder, (begin, end) in zip(places, parts, strict=False):
            others = [place for place in places if place != holder]
            inside += [Transfer(place, holder, begin, end, add=True) for place in others]
            home += [Transfer(holder, place, begin, end, add=False) for place in others]
    for number, (begin, end) in enumerate(parts):
        same = [places[number] for places in hosts]
        for owner, (first, last) in zip(same, split(end - begin, len(same)), strict=True):
            others = [place for place in same if place != owner]
            outside += [Transfer(place, owner, begin + first, begin + last, add=True) for place in others]
            back += [Transfer(owner, place, begin + first, begin + last, add=False) for place in others]
    return _without_empty([inside, outside, back, home])


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """``count`` elements in ``parts`` of sizes that differ by one at most: begin and end of each."""
    edges = [count * part // parts for part in range(parts + 1)] if parts else [0]
    return list(pairwise(edges))


def _without_empty(steps: Steps) -> Steps:
    full = [[transfer for transfer in step if transfer.begin < transfer.end] for step in steps]
    return [step for step in full if step]
