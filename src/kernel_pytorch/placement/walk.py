"""The positions of a mesh [dp, pp, cp, tp] in an order in which to fill them, and which share a link."""

from __future__ import annotations

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
        dimensions: all four, the one that changes at every step last.
    """

    def __init__(self, shape: Sizes, dimensions: Sizes) -> None:
        self.shape, self.dimensions = shape, dimensions
        self.positions: list[int] = []
        """At each step the position, counted in row-major order."""
        self.pairs: list[list[tuple[int, int]]] = []
        """At each step the earlier ones whose positions share a link with it: (dimension, step).

        All pairs of a tp or dp group, neighbours in the ring of cp, a stage of pp and the next.
        """
        strides = {d: prod(shape[d + 1 :]) for d in ROW_MAJOR}
        steps = {d: prod(shape[e] for e in dimensions[k + 1 :]) for k, d in enumerate(dimensions)}
        self._steps = steps
        for step, at in enumerate(product(*(range(shape[d]) for d in dimensions))):
            here = dict(zip(dimensions, at, strict=True))
            self.positions.append(sum(here[d] * strides[d] for d in dimensions))
            self.pairs.append(
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
        """At each step earlier ones that may be asked to have a device of a lower number.

        They do in the lowest of assignments that differ by a symmetry of the mesh: tp and dp in any order,
        the ring turned or reversed, the stages reversed.
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
        """(size, level): so many steps in a row lie in one component of links of at least that level."""
        found: list[tuple[int, int]] = []
        for d in reversed(self.dimensions):
            if self.shape[d] > 1:
                size, level = found[-1] if found else (1, levels[d])
                found.append((size * self.shape[d], min(level, levels[d])))
        return found


def _linked_before(dimension: int, here: int, size: int) -> list[int]:
    if dimension in (DP, TP):
        return list(range(here))
    closes_the_ring = dimension == CP and here == size - 1 > 1
    return [*([here - 1] if here else []), *([0] if closes_the_ring else [])]
