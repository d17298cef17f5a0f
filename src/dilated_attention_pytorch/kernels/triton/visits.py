"""Which branch shows a key to a query, so that it is scored once: pure arithmetic, no Triton.

A key that several branches offer counts once for each (DilatedPattern). Where branch ``a`` has every key of
branch ``c`` inside its segment (``r_a`` divides ``r_c``, and ``w_a`` divides ``w_c``), ``a`` *absorbs* ``c``:
there the key is visited through ``a`` alone, with the logarithm of its count added to its logit, and ``c``
visits only what lies outside. Keys that ``a`` offers come in *phases*, every ``(r_c / r_a)``-th of them one
that ``c`` offers too: visited phase by phase, all keys of a block have one count.

The absorbers of a branch must form a chain in which each absorbs the next (the first that has a key shows
it); branches that share keys otherwise, as r = 4 and 6 do, each show theirs.
"""

from __future__ import annotations

from functools import lru_cache
from math import lcm
from typing import NamedTuple

Branch = tuple[int, int]

# Segments of this length hold every place that a kernel can count (backends.py).
WHOLE = 2**30


class Visits(NamedTuple):
    """A pattern as the kernels take it, a compile-time constant: branches by dilation rate, finest first."""

    segments: tuple[int, ...]
    """Segment length of each branch."""
    rates: tuple[int, ...]
    """Dilation rate of each branch."""
    absorbers: tuple[int, ...]
    """The branches that absorb each branch, one bit each."""
    absorbed: tuple[int, ...]
    """The branches that each branch absorbs, one bit each."""
    phases: tuple[int, ...]
    """Of how many phases the keys of each branch are."""
    classes: int
    """Places that differ by a multiple of this are served alike inside common segments."""


def finest_first(branches: tuple[Branch, ...]) -> list[Branch]:
    """The order of the branches in :class:`Visits`."""
    return sorted(branches, key=lambda branch: branch[::-1])


@lru_cache(maxsize=256)
def visits_of(branches: tuple[Branch, ...]) -> Visits:
    """The visits of ``(w, r)`` pairs."""
    ordered = [(min(w, WHOLE), r) for w, r in finest_first(branches)]
    chains: list[list[int]] = []
    for c, coarse in enumerate(ordered):
        chain: list[int] = []
        for a, fine in enumerate(ordered[:c]):
            if _absorbs(fine, coarse) and all(_absorbs(ordered[x], fine) for x in chain):
                chain.append(a)
        chains.append(chain)
    absorbed = [[c for c, chain in enumerate(chains) if a in chain] for a in range(len(ordered))]
    return Visits(
        segments=tuple(w for w, _ in ordered),
        rates=tuple(r for _, r in ordered),
        absorbers=tuple(sum(1 << a for a in chain) for chain in chains),
        absorbed=tuple(sum(1 << c for c in some) for some in absorbed),
        phases=tuple(
            lcm(r, *(ordered[c][1] for c in some)) // r
            for (_, r), some in zip(ordered, absorbed, strict=True)
        ),
        classes=lcm(*(r for _, r in ordered)),
    )


def _absorbs(fine: Branch, coarse: Branch) -> bool:
    return coarse[1] % fine[1] == 0 and (coarse[0] == WHOLE or coarse[0] % fine[0] == 0)
