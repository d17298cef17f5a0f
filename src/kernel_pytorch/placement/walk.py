"""Walks through the positions of a mesh [dp, pp, cp, tp], in the order that a search fills them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod

DP, PP, CP, TP = range(4)
Sizes = tuple[int, int, int, int]
"""A number for each dimension, in the order of the mesh."""
ROW_MAJOR: Sizes = (DP, PP, CP, TP)


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

    def lower(self) -> list[list[int]]:
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
        """
        found: list[list[int]] = [[] for _ in self.positions]
        for d in (DP, TP):
            for i in range(1, self.shape[d]):
                found[i * self._steps[d]].append((i - 1) * self._steps[d])
        ring = self.shape[CP]
        for i in range(1, ring):
            found[i * self._steps[CP]].append(0)
        if ring > 2:
            found[(ring - 1) * self._steps[CP]].append(self._steps[CP])
        if self.shape[PP] > 1:
            found[(self.shape[PP] - 1) * self._steps[PP]].append(0)
        return found

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


def _linked_before(dimension: int, here: int, size: int) -> list[int]:
    """Lower coordinates that share a link: all in tp and dp, neighbours in the ring of cp and chain of pp."""
    if dimension in (DP, TP):
        return list(range(here))
    closes_the_ring = dimension == CP and here == size - 1 > 1
    return [*([here - 1] if here else []), *([0] if closes_the_ring else [])]
