"""Assigning devices to the positions of a mesh: a depth-first search, exact if it finishes.

Devices are numbered from 0, and sets of them are the bits of an integer. A link's level is its rank among the
links of the problem, the higher the faster. An assignment has a score of seven parts, compared in
order. The search repeatedly looks for an assignment whose parts all reach given values, and raises these
values one by one; traffic it lowers as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..links.facts import MeasuredLinks
from ..links.order import rank_order
from .host_traffic import HostLinks, alike_hosts, busiest_link
from .walk import CP, DP, PP, ROW_MAJOR, TP, MeshWalk, Sizes, Traffic, links

_MAX_STEPS = 20_000
_MAX_STEPS_FOR_EIGHT = 109_601  # all partial assignments of eight devices, so that eight are always exact
_MOST_TO_EXCHANGE = 64
"""Positions of which all exchanges of two are tried in seconds."""
_ROUNDING = 1e-9
"""Sums of traffic that differ by no more than this share are equal."""
_TRAFFIC = 5
"""The part of a score."""


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
    hosts: tuple[int, ...] = ()
    """Of each device, from 0. Empty: all have one host."""
    traffic: Traffic | None = None
    """Between the positions. None: there is none."""
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
    def _traits(self) -> list[tuple[int, ...]]:
        """For each device, its health and the positions that it fits."""
        sets = (self.degraded, self.unknown, *sorted(set(self.fits)))
        return [tuple(members >> device & 1 for members in sets) for device in range(len(self.levels))]

    @cached_property
    def twins(self) -> list[int]:
        """For each device, itself and those interchangeable with it: same health, memory and links."""
        return self._twins(self._traits)

    @cached_property
    def twins_of_host(self) -> list[int]:
        """The twins of each device on its own host."""
        return self._twins([(*own, host) for own, host in zip(self._traits, self.hosts, strict=True)])

    @cached_property
    def alike_hosts(self) -> list[list[int]]:
        """For each device, those of the same place on hosts interchangeable with its own."""
        return alike_hosts(self.hosts, self.levels, self._traits)

    @cached_property
    def host_devices(self) -> list[int]:
        """The devices of each host."""
        found = [0] * (max(self.hosts, default=0) + 1)
        for device, host in enumerate(self.hosts):
            found[host] |= 1 << device
        return found

    def _twins(self, traits: Sequence[tuple[int, ...]]) -> list[int]:
        # Twins all have the same level among themselves. Written on the diagonal, it makes their rows equal.
        found = [1 << device for device in range(len(self.levels))]
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

    def busiest(self, order: Sequence[int]) -> float:
        """The traffic over the busiest host's link."""
        if self.traffic is None or len(self.host_devices) == 1:
            return 0.0
        return busiest_link(self.traffic, [self.hosts[device] for device in order])

    def score(self, order: Sequence[int]) -> tuple[float, ...]:
        """Minus the number of degraded devices; the lowest level along tp, cp, pp and dp, or the highest of
        all levels where the mesh has no such links; minus the traffic over the busiest host's link; minus the
        number of devices of unknown health.

        Args:
            order: devices in row-major order of the mesh.
        """
        lowest = [self.top] * 4
        for dimension, (a, b) in links(self.shape, order):
            lowest[dimension] = min(lowest[dimension], int(self.levels[a, b]))
        used = sum(1 << device for device in order)
        levels = (lowest[TP], lowest[CP], lowest[PP], lowest[DP])
        unknown = (used & self.unknown).bit_count()
        return (-(used & self.degraded).bit_count(), *levels, -self.busiest(order), -unknown)


@dataclass(frozen=True)
class Assignment:
    """Devices for a mesh."""

    order: list[int]
    """In row-major order of the mesh."""
    links_exact: bool
    """Whether it is proved that no others are better in the parts of the score before the traffic."""
    exact: bool
    """Whether it is proved that no others have a better score."""


def assign(problem: Problem) -> Assignment | None:
    """The assignment with the best score that is found; None if none is possible.

    Of equal scores the one with the lowest devices is taken, if found in time.
    """
    floor: list[float] = [-problem.degraded.bit_count(), 0, 0, 0, 0, -math.inf, -problem.unknown.bit_count()]
    best, exact = _any(problem, floor)
    if best is None:
        return None

    def raise_floor(part: int, most: int) -> None:
        nonlocal best, exact
        assert best is not None
        low, high = int(problem.score(best)[part]), most
        while low < high:
            middle = (low + high + 1) // 2
            found, finished = _any(problem, [*floor[:part], middle, *floor[part + 1 :]])
            exact = exact and finished
            if found is None:
                high = middle - 1
            else:
                best, low = found, int(problem.score(found)[part])
        floor[part] = low

    for part, most in enumerate((0, *[problem.top] * 4)):
        raise_floor(part, most)
    links_exact = exact
    best, finished = _least_traffic(problem, floor, _lowest(problem, floor, ROW_MAJOR)[0] or best)
    exact = exact and finished
    floor[_TRAFFIC] = -problem.busiest(best) * (1 + _ROUNDING)
    raise_floor(_TRAFFIC + 1, 0)
    return Assignment(_lowest(problem, floor, ROW_MAJOR)[0] or best, links_exact, exact)


def _least_traffic(problem: Problem, floor: Sequence[float], best: list[int]) -> tuple[list[int], bool]:
    """An assignment of least traffic over the busiest host's link, and whether it is proved to be that.

    Args:
        floor: for the parts of its score.
        best: reaches it.
    """
    most = problem.busiest(best)
    if most == 0:
        return best, True
    below = [*floor[:_TRAFFIC], -most * (1 - _ROUNDING), *floor[_TRAFFIC + 1 :]]
    found, finished = _lowest(problem, below, _soonest(floor), improve=True)
    best = found or best
    if finished or len(best) > _MOST_TO_EXCHANGE:
        return best, finished
    # Of these devices; without regard to their links, so that what is proved of it is proved of all orders.
    places: dict[int, list[int]] = {}
    for place, device in enumerate(best):
        places.setdefault(problem.hosts[device], []).append(place)
    order = rank_order(
        MeasuredLinks(hosts=tuple(map(tuple, places.values())), basis="given"), problem.traffic
    )
    other = [best[place] for place in order.ranks]
    least, most = problem.busiest(other), problem.busiest(best)
    if least < most * (1 - _ROUNDING) and _reaches(problem, other, floor):
        best, most = other, least
    return best, order.exact and len(best) == len(problem.levels) and most <= least * (1 + _ROUNDING)


def _reaches(problem: Problem, order: Sequence[int], floor: Sequence[float]) -> bool:
    fits = not problem.fits or all(fit >> device & 1 for fit, device in zip(problem.fits, order, strict=True))
    return fits and all(own >= least for own, least in zip(problem.score(order), floor, strict=True))


def _any(problem: Problem, floor: Sequence[float]) -> tuple[list[int] | None, bool]:
    """As :func:`_lowest`, along the walk that ends soonest."""
    return _lowest(problem, floor, _soonest(floor))


def _soonest(floor: Sequence[float]) -> Sizes:
    """The dimensions of the walk that ends soonest.

    Groups that need the fastest links are filled first, in consecutive steps: dead ends show early.
    """
    levels = _levels(floor)
    a, b, c, d = sorted(ROW_MAJOR, key=lambda dimension: levels[dimension])
    return a, b, c, d


def _lowest(
    problem: Problem, floor: Sequence[float], dimensions: Sizes, *, improve: bool = False
) -> tuple[list[int] | None, bool]:
    """The lowest assignment with a score of at least ``floor`` in each part, and whether the search finished.

    Assignments are compared device by device along the walk through ``dimensions``. None if there is none,
    or none was found.

    Args:
        improve: go on to the one of least traffic over the busiest host's link; hosts that add least come
            first. The floor has a limit for it.
    """
    walk = MeshWalk.of(problem.shape, dimensions)
    size, levels = math.prod(problem.shape), _levels(floor)
    fits = [problem.fits[position] for position in walk.positions] if problem.fits else []
    limit = -floor[_TRAFFIC]
    traffic = problem.traffic if limit < math.inf and len(problem.host_devices) > 1 else None
    host_links, twins = None, problem.twins
    if traffic is not None:
        in_order = np.ix_(walk.positions, walk.positions)
        host_links, twins = HostLinks(traffic[in_order], len(problem.host_devices)), problem.twins_of_host
    # Positions that need different amounts of memory cannot be exchanged.
    lower = [[]] * size if fits else walk.lower(traffic)
    reach = [problem.reach(level) for level in levels]
    supply = _supply(fits or [problem.everything] * size)
    # Steps in a row that are joined by fast links must all find room in one component of such links.
    room = [(block, problem.components(level)) for block, level in walk.blocks(levels)]
    limited = [(problem.degraded, -floor[0]), (problem.unknown, -floor[-1])]
    chosen: list[int] = []
    used = 0
    best: list[int] | None = None
    preferred: list[list[int]] = []
    """For each step, the devices of each host that it may be on, those first that add least."""

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
        if free and host_links is not None:
            busiest = host_links.busiest_after()
            ranked = [
                problem.host_devices[host]
                for host in np.argsort(busiest, kind="stable").tolist()
                if busiest[host] <= limit
            ]
            free &= sum(ranked)
            preferred[step:] = [ranked]
        return free

    def drop(device: int) -> int:
        """The devices that need not be tried where this one was tried in vain."""
        # Symmetry breaking: once device 0 was tried in vain, skip its twin 1. Exchanging both turns an
        # assignment with 1 here into a lower one with 0, so the lowest is kept, as in walk.lower().
        same = twins[device]
        if host_links is not None and not used & problem.host_devices[problem.hosts[device]]:
            # So does exchanging whole hosts, as long as nothing of either is used.
            for other in problem.alike_hosts[device]:
                if not used & problem.host_devices[problem.hosts[other]]:
                    same |= twins[other] & -2 << device
        return same

    left = _MAX_STEPS_FOR_EIGHT if len(problem.levels) <= 8 else _MAX_STEPS
    choices = [candidates()]
    while choices:
        if not choices[-1]:
            choices.pop()
            if chosen:
                used &= ~(1 << chosen.pop())
                if host_links is not None:
                    host_links.remove()
        elif left == 0:
            return best, False
        else:
            left -= 1
            among = choices[-1]
            if improve:
                among &= next(devices for devices in preferred[len(chosen)] if devices & among)
            device = (among & -among).bit_length() - 1
            choices[-1] &= ~drop(device)
            chosen.append(device)
            used |= 1 << device
            if host_links is not None:
                host_links.add(problem.hosts[device])
            if len(chosen) < size:
                choices.append(candidates())
                continue
            where = dict(zip(walk.positions, chosen, strict=True))
            best = [where[position] for position in range(size)]
            if not improve:
                return best, True
            limit = problem.busiest(best) * (1 - _ROUNDING)
            choices.append(0)
    return best, True


def _levels(score: Sequence[float]) -> Sizes:
    """The levels of a score by dimension."""
    tp, cp, pp, dp = map(int, score[1:_TRAFFIC])
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
