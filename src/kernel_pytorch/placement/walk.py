"""Walks through the positions of a mesh [dp, pp, cp, tp], in the order that a search fills them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

DP, PP, CP, TP = range(4)
Sizes = tuple[int, int, int, int]
"""A number for each dimension, in the order of the mesh."""
ROW_MAJOR: Sizes = (DP, PP, CP, TP)
Traffic = npt.NDArray[np.float64]
"""[n, n], bytes from the position of the row to that of the column, both counted in row-major order."""


class MeshWalk:
    """A walk through all positions.

    Args:
        shape: of the mesh.
        dimensions: all four; the coordinate in the last one changes at every step.
    """

    def __init__(self, shape: Sizes, dimensions: Sizes) -> None:
        self.shape, self.dimensions = shape, dimensions
        self.positions: list[int] = []
        """For each step, the position, counted in row-major order."""
        self.linked: list[list[tuple[int, int]]] = []
        """For each step, (dimension, step) of the earlier positions that share a link with it."""
        strides = {d: prod(shape[d + 1 :]) for d in ROW_MAJOR}
        steps = {d: prod(shape[e] for e in dimensions[k + 1 :]) for k, d in enumerate(dimensions)}
        self._steps = steps
        for step, at in enumerate(product(*(range(shape[d]) for d in dimensions))):
            here = dict(zip(dimensions, at, strict=True))
            self.positions.append(sum(here[d] * strides[d] for d in dimensions))
            self.linked.append(
                [
                    (d, step - (here[d] - other) * steps[d])
                    for d in dimensions
                    for other in _linked_before(d, here[d], shape[d])
                ]
            )

    @staticmethod
    @lru_cache(maxsize=64)
    def of(shape: Sizes, dimensions: Sizes) -> MeshWalk:
        return MeshWalk(shape, dimensions)

    def lower(self, traffic: Traffic | None = None) -> list[list[int]]:
        """Symmetry breaking: for each step, the earlier steps that must hold a lower device number.

        A symmetry of the mesh moves whole slices (a slice: all positions with the same coordinate in one
        dimension) and keeps every link. Of the assignments that it turns into each other only the lowest is
        wanted, compared step by step, and that one has the lower device at the first step that differs: the
        first of a slice.

        * tp and dp link all pairs, so slices may stand in any order: each starts with a higher device than
          the one before. With tp 4, of the 24 orders of devices 0 to 3 only 0 1 2 3 is tried.
        * cp links neighbours in a ring, which may be turned (2 3 0 1 is 0 1 2 3: the first slice starts
          with the lowest device) and reversed (0 3 2 1 is 0 1 2 3: the second starts lower than the last).
          With cp 4, 3 of 24 orders are tried.
        * pp links neighbours in a chain, which may be reversed (3 2 1 0 is 0 1 2 3: the first slice starts
          lower than the last). With pp 4, 12 of 24 orders are tried.

        Args:
            traffic: leave out symmetries that change it, but for its direction. Of traffic around rings in
                tp or dp those of cp are left.
        """
        found: list[list[int]] = [[] for _ in self.positions]
        for d in ROW_MAJOR:
            size, first = self.shape[d], self._steps[d]
            if size == 1:
                continue
            swaps = [[*range(i), i + 1, i, *range(i + 2, size)] for i in range(size - 1)]
            if d in (DP, TP) and all(self._keeps(traffic, d, swap) for swap in swaps):
                for i in range(1, size):
                    found[i * first].append((i - 1) * first)
            elif d == PP:
                if self._keeps(traffic, d, range(size)[::-1]):
                    found[(size - 1) * first].append(0)
            else:
                if self._keeps(traffic, d, [*range(1, size), 0]):
                    for i in range(1, size):
                        found[i * first].append(0)
                if size > 2 and self._keeps(traffic, d, [0, *range(1, size)[::-1]]):
                    found[(size - 1) * first].append(first)
        return found

    def _keeps(self, traffic: Traffic | None, dimension: int, slices: Sequence[int]) -> bool:
        """Whether traffic stays the same, or is reversed, when these slices take the places of all."""
        if traffic is None:
            return True
        moved = np.arange(len(traffic)).reshape(self.shape).take(slices, axis=dimension).ravel()
        after = traffic[np.ix_(moved, moved)]
        return bool((after == traffic).all() or (after == traffic.T).all())

    def blocks(self, levels: Sizes) -> list[tuple[int, int]]:
        """(steps, level): each run of ``steps`` steps is joined by links of at least ``level``.

        With shape (2, 1, 1, 4) walked in row-major order, each 4 steps are a tensor-parallel group, and all
        8 are joined by links of the lower of the levels of tp and dp.
        """
        found: list[tuple[int, int]] = []
        for d in reversed(self.dimensions):
            if self.shape[d] > 1:
                size, level = found[-1] if found else (1, levels[d])
                found.append((size * self.shape[d], min(level, levels[d])))
        return found


def links(shape: Sizes, order: Sequence[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """(dimension, two devices) for all pairs that communicate.

    Args:
        order: devices in row-major order of the mesh.
    """
    for step, linked in enumerate(MeshWalk.of(shape, ROW_MAJOR).linked):
        for dimension, other in linked:
            yield dimension, (order[step], order[other])


def around_rings(shape: Sizes) -> Traffic:
    """Each position sends 1 to the next along each dimension, around a ring; along a chain in pp."""
    positions = np.arange(prod(shape)).reshape(shape)
    traffic = np.zeros((positions.size, positions.size))
    for d in ROW_MAJOR:
        if shape[d] > 1:
            here, there = positions, np.roll(positions, -1, axis=d)
            if d == PP:
                here, there = (x.take(range(shape[d] - 1), axis=d) for x in (here, there))
            traffic[here.ravel(), there.ravel()] += 1
    return traffic


def _linked_before(dimension: int, here: int, size: int) -> list[int]:
    """Lower coordinates that share a link: all in tp and dp, neighbours in the ring of cp and chain of pp."""
    if dimension in (DP, TP):
        return list(range(here))
    closes_the_ring = dimension == CP and here == size - 1 > 1
    return [*([here - 1] if here else []), *([0] if closes_the_ring else [])]
