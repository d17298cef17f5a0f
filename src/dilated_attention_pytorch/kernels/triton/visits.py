"""Through which branch a query visits a key, so that it is scored once: pure arithmetic, no Triton.

A key that several branches offer counts once for each (DilatedPattern). Where branch ``a`` has every key of
branch ``c`` inside its segment (``r_a`` divides ``r_c``, and ``w_a`` divides ``w_c``), ``a`` *absorbs* ``c``:
there the key is visited through ``a`` alone, with the logarithm of its count added to its logit, and ``c``
visits only what lies outside. Every ``(r_c / r_a)``-th key that ``a`` offers is one that ``c`` offers too.
These are one *phase* of the keys of ``a``: visited phase by phase, all keys of a block have one count.

Branches (8, 1) and (16, 2), head 0, query 8: the first absorbs the second. Through it the query visits
8 10 12 14 (phase 0, counted twice) and 9 11 13 15 (phase 1, counted once), through the second 0 2 4 6.

The absorbers of a branch must form a chain in which each absorbs the next (a key is visited through the
first that offers it); branches that share keys otherwise, as r = 4 and 6 do, each visit theirs.
"""

from __future__ import annotations

from functools import lru_cache
from math import lcm
from typing import NamedTuple

Branch = tuple[int, int]

# Segments of this length hold every position that a kernel can count (backends.py).
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
    """Number of phases of the keys of each branch."""
    classes: int
    """R, the least common multiple of the rates: positions that differ by a multiple of it and lie in the
    same segments are served by the same branches."""


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
