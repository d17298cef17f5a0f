"""Placing devices in a mesh [dp, pp, cp, tp], as a problem about whole numbers.

Devices are counted from 0, and sets of them are the bits of an integer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import prod

import numpy as np
import numpy.typing as npt

from .walk import ROW_MAJOR, MeshWalk, Sizes

Levels = Sizes
"""Of links, by dimension."""


@dataclass(kw_only=True)
class Problem:
    shape: Sizes
    levels: npt.NDArray[np.int64]
    """Of each pair's link, the higher the faster."""
    nodes: tuple[int, ...]
    """The node of each device."""
    degraded: int = 0
    """Devices to use as few of as there must be."""
    unknown: int = 0
    """Devices to avoid among otherwise equal assignments."""
    fits: tuple[int, ...] = ()
    """For each position, in row-major order, the devices with enough memory, a nested family; empty: all."""
    _reach: dict[int, list[int]] = field(default_factory=dict, init=False)
    _components: dict[int, list[int]] = field(default_factory=dict, init=False)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def count(self) -> int:
        return len(self.nodes)

    @property
    def everything(self) -> int:
        return (1 << self.count) - 1

    @cached_property
    def top(self) -> int:
        return int(self.levels.max(initial=0))

    @cached_property
    def needs(self) -> list[int]:
        """The different sets in ``fits``."""
        return sorted(set(self.fits or [self.everything]))

    def demand(self, walk: MeshWalk) -> list[tuple[int, list[int]]]:
        """(need, counts): from each step of the walk on, so many positions take devices of ``need`` alone."""
        found = []
        for need in self.needs:
            counts = [0] * (self.size + 1)
            for step in reversed(range(self.size)):
                within = not self.fits or self.fits[walk.positions[step]] & ~need == 0
                counts[step] = counts[step + 1] + within
            found.append((need, counts))
        return found

    def fewest_degraded(self) -> int | None:
        """How many degraded devices must be used; None if even all of them do not suffice."""
        fewest = 0
        for need, counts in self.demand(MeshWalk.of(self.shape, ROW_MAJOR)):
            good = (need & ~self.degraded).bit_count()
            if need.bit_count() < counts[0]:
                return None
            fewest = max(fewest, counts[0] - good)
        return fewest

    def reach(self, level: int) -> list[int]:
        """For each device those that it reaches with a link of at least ``level``."""
        if level not in self._reach:
            packed = np.packbits(self.levels >= level, axis=1, bitorder="little")
            self._reach[level] = [int.from_bytes(row.tobytes(), "little") for row in packed]
        return self._reach[level]

    def components(self, level: int) -> list[int]:
        """The sets of devices joined, if by way of others, through links of at least ``level``."""
        if level not in self._components:
            found, left, reach = [], self.everything, self.reach(level)
            while left:
                part, edge = 0, left & -left
                while edge:
                    part |= edge
                    beyond = 0
                    for device in bits(edge):
                        beyond |= reach[device]
                    edge = beyond & ~part
                found.append(part)
                left &= ~part
            self._components[level] = found
        return self._components[level]

    def has_room(self, levels: Levels) -> bool:
        """Whether sub-meshes that must lie within a component all have one; if not, ``levels`` cannot be."""
        long = [dimension for dimension in ROW_MAJOR if self.shape[dimension] > 1]
        for count in range(1, len(long) + 1):
            for some in combinations(long, count):
                block = prod(self.shape[dimension] for dimension in some)
                parts = self.components(min(levels[dimension] for dimension in some))
                if sum(part.bit_count() // block for part in parts) < self.size // block:
                    return False
        return True

    def achieved(self, order: Sequence[int]) -> Levels:
        """The slowest level in each dimension; the highest there is where it has no links.

        Args:
            order: devices in row-major order of the mesh.
        """
        found = [self.top] * 4
        for position, earlier in enumerate(MeshWalk.of(self.shape, ROW_MAJOR).pairs):
            for dimension, other in earlier:
                level = int(self.levels[order[position], order[other]])
                found[dimension] = min(found[dimension], level)
        return (found[0], found[1], found[2], found[3])


def bits(of: int) -> Iterator[int]:
    """The devices of a set, ascending."""
    while of:
        lowest = of & -of
        yield lowest.bit_length() - 1
        of ^= lowest
