"""Which device goes where in a mesh: a search that is exact where it finishes.

It asks again and again whether an assignment exists whose links have at least a given level in each
dimension, and raises the levels one dimension after the other.
"""

from __future__ import annotations

from .problem import Levels, Problem
from .symmetry import Symmetry
from .walk import CP, DP, PP, ROW_MAJOR, TP, MeshWalk, Sizes

_PRIORITY = (TP, CP, PP, DP)
_STEPS = 20_000
_STEPS_FOR_EIGHT = 109_601  # all partial assignments of eight devices, so that eight are always exact


def search(problem: Problem) -> tuple[list[int], bool] | None:
    """Devices in row-major order of the mesh, and whether no assignment is better; None if none is possible.

    Better is: fewer degraded devices, then the faster slowest link along tp (all pairs of a group), cp
    (neighbours in the ring), pp (a stage and the next), dp (all pairs), then fewer unknown devices, then
    lower numbers.
    """
    degraded, unknown = problem.fewest_degraded(), problem.unknown.bit_count()
    if degraded is None:
        return None
    symmetry, exact = Symmetry(problem), True

    def solve(levels: Levels, unknown: int, dimensions: Sizes) -> list[int] | None:
        nonlocal exact
        order, finished = _first(problem, symmetry, levels, degraded, unknown, dimensions)
        exact = exact and finished
        return order

    levels: Levels = (0, 0, 0, 0)
    best = solve(levels, unknown, ROW_MAJOR)
    if best is None:
        return None
    for dimension in _PRIORITY:
        low, high = problem.achieved(best)[dimension], problem.top
        while low < high:
            middle = (low + high + 1) // 2
            asked = _with(levels, dimension, middle)
            found = solve(asked, unknown, _tightest_last(asked))
            if found is None:
                high = middle - 1
            else:
                best, low = found, problem.achieved(found)[dimension]
        levels = _with(levels, dimension, low)
    proved = exact
    low, high = 0, _count(problem.unknown, best)
    while low < high:
        middle = (low + high) // 2
        found = solve(levels, middle, _tightest_last(levels))
        if found is None:
            low = middle + 1
        else:
            best, high = found, _count(problem.unknown, found)
    return solve(levels, high, ROW_MAJOR) or best, proved


def _with(levels: Levels, dimension: int, level: int) -> Levels:
    changed = [*levels]
    changed[dimension] = level
    return (changed[0], changed[1], changed[2], changed[3])


def _tightest_last(levels: Levels) -> Sizes:
    """The dimensions by level: what must lie close together is filled first."""
    a, b, c, d = sorted(ROW_MAJOR, key=lambda dimension: levels[dimension])
    return (a, b, c, d)


def _count(devices: int, order: list[int]) -> int:
    return sum(devices >> device & 1 for device in order)


def _first(
    problem: Problem, symmetry: Symmetry, levels: Levels, degraded: int, unknown: int, dimensions: Sizes
) -> tuple[list[int] | None, bool]:
    """An assignment with links of at least ``levels`` and at most so many degraded and unknown devices, None
    if none was found; and whether the search finished. Of several, the lowest along the walk through
    ``dimensions``.
    """
    if not problem.has_room(levels):
        return None, True
    walk = MeshWalk.of(problem.shape, dimensions)
    uniform = len(problem.needs) == 1
    lower = walk.lower() if uniform else [[]] * problem.size
    fits = [problem.fits[position] for position in walk.positions] if problem.fits else []
    demand = problem.demand(walk)
    reach = [problem.reach(level) for level in levels]
    blocks = [(size, problem.components(level)) for size, level in walk.blocks(levels)]
    chosen: list[int] = []
    used = 0

    def candidates() -> int:
        step, spare = len(chosen), degraded - (used & problem.degraded).bit_count()
        free = problem.everything & ~used
        if spare <= 0:
            free &= ~problem.degraded
        if (used & problem.unknown).bit_count() >= unknown:
            free &= ~problem.unknown
        for need, counts in demand:
            good, bad = free & need & ~problem.degraded, free & need & problem.degraded
            if good.bit_count() + min(spare, bad.bit_count()) < counts[step]:
                return 0
        for size, components in blocks:
            if step % size == 0:
                room = sum((free & part).bit_count() // size for part in components)
                if room < (problem.size - step) // size:
                    return 0
        if fits:
            free &= fits[step]
        for dimension, other in walk.pairs[step]:
            free &= reach[dimension][chosen[other]]
        for other in lower[step]:
            free &= -2 << chosen[other]
        return free

    left = _STEPS_FOR_EIGHT if problem.count <= 8 else _STEPS
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
            choices[-1] &= ~symmetry.others(device, used)
            chosen.append(device)
            used |= 1 << device
            if len(chosen) == problem.size:
                where = dict(zip(walk.positions, chosen, strict=True))
                return [where[position] for position in range(problem.size)], True
            choices.append(candidates())
    return None, True
