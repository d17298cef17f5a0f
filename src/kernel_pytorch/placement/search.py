"""Assigning devices to the positions of a mesh: a depth-first search, exact if it finishes.

Devices are numbered from 0, and sets of them are the bits of an integer. A link's level is its rank among the
links of the problem, the higher the faster. An assignment has a score of six parts, compared in
order. The search repeatedly looks for an assignment whose parts all reach given values, and raises these
values one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .walk import CP, DP, PP, ROW_MAJOR, TP, MeshWalk, Sizes, links

_MAX_STEPS = 20_000
_MAX_STEPS_FOR_EIGHT = 109_601  # all partial assignments of eight devices, so that eight are always exact


@dataclass(kw_only=True)
class Problem:
    """Devices, their links and the shape of the mesh [dp, pp, cp, tp] that they fill."""

    shape: Sizes
    levels: npt.NDArray[np.int64]
    """[n, n], level of each pair's link; the diagonal is ignored."""
    degraded: int = 0
    """Bit set of degraded devices; as few as possible are used."""
    unknown: int = 0
    """Bit set of devices of unknown health, none of them degraded; avoided among otherwise equal choices."""
    fits: tuple[int, ...] = ()
    """For each position, in row-major order, the devices with enough memory. Of any two sets one contains the
    other. Empty: every device fits everywhere."""
    _reach: dict[int, list[int]] = field(default_factory=dict, init=False)
    _components: dict[int, list[int]] = field(default_factory=dict, init=False)

    @property
    def everything(self) -> int:
        return (1 << len(self.levels)) - 1

    @cached_property
    def top(self) -> int:
        return int(self.levels.max(initial=0))

    def reach(self, level: int) -> list[int]:
        """For each device, those that it reaches with a link of at least ``level``."""
        if level not in self._reach:
            packed = np.packbits(self.levels >= level, axis=1, bitorder="little")
            self._reach[level] = [int.from_bytes(row.tobytes(), "little") for row in packed]
        return self._reach[level]

    def components(self, level: int) -> list[int]:
        """The sets of devices connected, directly or through others, by links of at least ``level``."""
        if level not in self._components:
            found, left, reach = [], self.everything, self.reach(level)
            while left:
                part, edge = 0, left & -left
                while edge:
                    part |= edge
                    beyond = 0
                    for device in _bits(edge):
                        beyond |= reach[device]
                    edge = beyond & ~part
                found.append(part)
                left &= ~part
            self._components[level] = found
        return self._components[level]

    @cached_property
    def twins(self) -> list[int]:
        """For each device, itself and those interchangeable with it: same health, memory and links.

        Twins all have the same level among themselves. Written on the diagonal, it makes their rows equal.
        """
        found = [1 << device for device in range(len(self.levels))]
        sets = (self.degraded, self.unknown, *sorted(set(self.fits)))
        traits = [tuple(members >> device & 1 for members in sets) for device in range(len(self.levels))]
        for level in range(self.top + 1):
            rows = self.levels.copy()
            np.fill_diagonal(rows, level)
            alike: dict[tuple[object, ...], int] = {}
            for device, row in enumerate(rows):
                key = (*traits[device], row.tobytes())
                alike[key] = alike.get(key, 0) | 1 << device
            for devices in alike.values():
                for device in _bits(devices):
                    found[device] |= devices
        return found

    def score(self, order: Sequence[int]) -> tuple[int, ...]:
        """Minus the number of degraded devices; the lowest level along tp, cp, pp and dp, or the highest of
        all levels where the mesh has no such links; minus the number of devices of unknown health.

        Args:
            order: devices in row-major order of the mesh.
        """
        lowest = [self.top] * 4
        for dimension, (a, b) in links(self.shape, order):
            lowest[dimension] = min(lowest[dimension], int(self.levels[a, b]))
        used = sum(1 << device for device in order)
        levels = (lowest[TP], lowest[CP], lowest[PP], lowest[DP])
        return (-(used & self.degraded).bit_count(), *levels, -(used & self.unknown).bit_count())


def assign(problem: Problem) -> tuple[list[int], bool] | None:
    """Devices in row-major order of the mesh, and whether it is proved that no others have a better score.

    None if no assignment is possible. Of equal scores the one with the lowest devices is taken, if found in
    time.
    """
    floor = [-problem.degraded.bit_count(), 0, 0, 0, 0, -problem.unknown.bit_count()]
    best, exact = _any(problem, floor)
    if best is None:
        return None
    for part, most in enumerate((0, *[problem.top] * 4, 0)):
        low, high = problem.score(best)[part], most
        while low < high:
            middle = (low + high + 1) // 2
            found, finished = _any(problem, [*floor[:part], middle, *floor[part + 1 :]])
            exact = exact and finished
            if found is None:
                high = middle - 1
            else:
                best, low = found, problem.score(found)[part]
        floor[part] = low
    return _lowest(problem, floor, ROW_MAJOR)[0] or best, exact


def _any(problem: Problem, floor: Sequence[int]) -> tuple[list[int] | None, bool]:
    """As :func:`_lowest`, along the walk that ends soonest.

    Groups that need the fastest links are filled first, in consecutive steps: dead ends show early.
    """
    levels = _levels(floor)
    a, b, c, d = sorted(ROW_MAJOR, key=lambda dimension: levels[dimension])
    return _lowest(problem, floor, (a, b, c, d))


def _lowest(problem: Problem, floor: Sequence[int], dimensions: Sizes) -> tuple[list[int] | None, bool]:
    """The lowest assignment with a score of at least ``floor`` in each part, and whether the search finished.

    Assignments are compared device by device along the walk through ``dimensions``. None if there is none,
    or none was found.
    """
    walk = MeshWalk.of(problem.shape, dimensions)
    size, levels = math.prod(problem.shape), _levels(floor)
    fits = [problem.fits[position] for position in walk.positions] if problem.fits else []
    # Positions that need different amounts of memory cannot be exchanged.
    lower = [[]] * size if fits else walk.lower()
    reach = [problem.reach(level) for level in levels]
    supply = _supply(fits or [problem.everything] * size)
    # Steps in a row that are joined by fast links must all find room in one component of such links.
    room = [(block, problem.components(level)) for block, level in walk.blocks(levels)]
    limited = [(problem.degraded, -floor[0]), (problem.unknown, -floor[-1])]
    chosen: list[int] = []
    used = 0

    def candidates() -> int:
        """Devices for the next step; none if a bound shows that the rest of the mesh cannot be filled."""
        step, free = len(chosen), problem.everything & ~used
        spares = [(devices, most - (used & devices).bit_count()) for devices, most in limited]
        for devices, spare in spares:
            if not spare:
                free &= ~devices
        for need, counts in supply:
            own = free & need
            barred = sum(max(0, (own & devices).bit_count() - spare) for devices, spare in spares)
            if own.bit_count() - barred < counts[step]:
                return 0
        for block, parts in room:
            if step % block == 0:
                own_parts, blocks = [free & part for part in parts], (size - step) // block
                if any(_least(own_parts, devices, block, blocks) > spare for devices, spare in spares):
                    return 0
        if fits:
            free &= fits[step]
        for dimension, other in walk.linked[step]:
            free &= reach[dimension][chosen[other]]
        for other in lower[step]:
            free &= -2 << chosen[other]
        return free

    left = _MAX_STEPS_FOR_EIGHT if len(problem.levels) <= 8 else _MAX_STEPS
    choices = [candidates()]
    while choices:
        if not choices[-1]:
            choices.pop()
            if chosen:
                used &= ~(1 << chosen.pop())
        elif left == 0:
            return None, False
        else:
            left -= 1
            device = (choices[-1] & -choices[-1]).bit_length() - 1
            # Symmetry breaking: once device 0 was tried in vain, skip its twin 1. Exchanging both turns an
            # assignment with 1 here into a lower one with 0, so the lowest is kept, as in walk.lower().
            choices[-1] &= ~problem.twins[device]
            chosen.append(device)
            used |= 1 << device
            if len(chosen) == size:
                where = dict(zip(walk.positions, chosen, strict=True))
                return [where[position] for position in range(size)], True
            choices.append(candidates())
    return None, True


def _levels(score: Sequence[int]) -> Sizes:
    """The levels of a score by dimension."""
    _, tp, cp, pp, dp, _ = score
    return dp, pp, cp, tp


def _supply(fits: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(need, counts): from ``step`` on, ``counts[step]`` steps can use only devices of ``need``.

    At least as many must be left. With devices of 80, 80 and 40 GB and needs of 20, 60 and 60 GB, the first
    step must not take one of 80 GB.

    Args:
        fits: for each step, the devices with enough memory.
    """
    found = []
    for need in sorted(set(fits)):
        counts = [0]
        for fit in reversed(fits):
            counts.append(counts[-1] + (not fit & ~need))
        found.append((need, counts[::-1]))
    return found


def _least(parts: Sequence[int], limited: int, block: int, num_blocks: int) -> float:
    """A lower bound on how many devices of ``limited`` are used by blocks of devices, each within one part.

    Infinite if the blocks do not fit: parts of 7, 7 and 2 devices hold 1 + 1 + 0 blocks of 4. In each part
    the blocks use its other devices first: of three parts of 8 devices of which 0, 2 and 8 are limited, two
    blocks of 8 use at least 0 + 2.
    """
    costs: list[int] = []
    for part in parts:
        others = (part & ~limited).bit_count()
        ends = range(block, part.bit_count() + 1, block)
        costs += [min(block, max(0, end - others)) for end in ends]
    return sum(sorted(costs)[:num_blocks]) if len(costs) >= num_blocks else math.inf


def _bits(devices: int) -> Iterator[int]:
    """The devices of a set, ascending."""
    while devices:
        lowest = devices & -devices
        yield lowest.bit_length() - 1
        devices ^= lowest
