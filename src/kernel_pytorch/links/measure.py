"""Measuring the links between the ranks of a group."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import torch
import torch.distributed as dist

from ..groups import GroupError, tell_all
from ..machine.files import Files
from .facts import Hosts, MeasuredLinks
from .hosts import RankHome, group_by_host, host_names
from .rounds import Bundle, double, inside, rounds_of, single
from .samples import Samples, links_of
from .trains import Trains

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PINGS = 3
_PING_SHARE = 0.12
"""Of the time, for round trips and what messages cost the CPU; the rest is for rates."""
_LEAST_CYCLES = 3
"""Cycles that are measured in any case; the first one is not counted."""


class _Told(msgspec.Struct):
    samples: Samples
    seconds: float


def measure_links(
    process_group: ProcessGroup | None = None, *, seconds: float = 3.0, quick: bool = False
) -> MeasuredLinks:
    """Measure all pairs of hosts and of ranks. All ranks call this; nothing else may use the group meanwhile.

    Args:
        process_group: of two ranks or more; default: all ranks.
        seconds: in which rank 0 has all be done. What was not measured by then is missing: first how links
            are shared. Round trips and the rates of all pairs of hosts are measured twice in any case.
        quick: once is enough, and how links are shared is left out.

    Returns:
        The same on all ranks.

    Raises:
        GroupError: a rank failed or did not answer within the group's timeout.
        ValueError: ``seconds`` is not positive, or the group has one rank.
    """
    check_seconds(seconds)
    group = process_group or dist.group.WORLD
    if dist.get_world_size(group) < 2:
        raise ValueError("a group of one rank has no links")
    assert group is not None
    begin = time.monotonic()
    homes = homes_of(group)
    hosts = group_by_host(homes)
    # What the ranks have measured is told last, in as many messages as this; a round may take longer than
    # the one before.
    end = begin + 0.97 * seconds - 2 * (time.monotonic() - begin)
    try:
        samples = _Measuring(group, hosts, begin, end, quick=quick).done()
    except RuntimeError as error:
        if isinstance(error, GroupError):
            raise
        reason = str(error).partition("\n")[0]
        raise GroupError(
            f"the links could not be measured: a rank failed or did not answer: {reason}"
        ) from error
    answers = tell_all(
        lambda: msgspec.msgpack.encode(_Told(samples, time.monotonic() - begin)),
        group,
        what="measure its links",
    )
    told = [msgspec.msgpack.decode(answer, type=_Told) for answer in answers]
    names = host_names(homes, hosts)
    return links_of(hosts, names, [each.samples for each in told], told[0].seconds)


def check_seconds(seconds: float) -> None:
    """Refuse no time at all.

    Raises:
        ValueError: ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")


def homes_of(group: ProcessGroup | None) -> list[RankHome]:
    """Where each rank runs. All ranks call this."""
    answers = tell_all(lambda: msgspec.json.encode(home_of_this_rank()), group, what="say where it runs")
    return [msgspec.json.decode(answer, type=RankHome) for answer in answers]


def home_of_this_rank() -> RankHome:
    """Where this process runs."""
    files = Files()
    return RankHome(
        boot_id=files.text("proc/sys/kernel/random/boot_id"),
        network_namespace=files.link_name("proc/self/ns/net"),
        hostname=socket.gethostname(),
    )


class _Measuring:
    """Rounds of measurements. A clock of one rank ends them for all, or some would wait for others that left.

    Args:
        group: all ranks.
        hosts: of the ranks.
        begin, end: of the time to measure in.
        quick: see :func:`measure_links`.
    """

    def __init__(self, group: ProcessGroup, hosts: Hosts, begin: float, end: float, *, quick: bool) -> None:
        self._group, self._hosts, self._begin, self._end, self._quick = group, hosts, begin, end, quick
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._trains = Trains(group)
        self._took: dict[object, float] = {}
        """Seconds from rank 0's decision to do something to its next one."""
        self._doing: object = None
        self._decided = begin

    def done(self) -> Samples:
        """What this rank has measured."""
        rates, shared = single(self._hosts), double(self._hosts)
        if not self._quick or len(self._hosts) == 1:
            rates += inside(self._hosts)
        pings_end = self._begin + _PING_SHARE * (self._end - self._begin)
        for cycle in self._cycles():
            if not self._go_on("trips", pings_end, cycle):
                break
            for pairs in rounds_of(self._size):
                for a, b in pairs:
                    if self._rank in (a, b):
                        self._trains.trip(a, b, _PINGS if cycle else 1, cycle)
            for bundles in [] if self._quick else rates:
                self._run(bundles, cycle, tiny=True)
        for cycle in self._cycles():
            rounds = rates if cycle < _LEAST_CYCLES - 1 else rates + shared
            for number, bundles in enumerate(rounds):
                if not self._go_on(number, self._end, cycle if number < len(rates) else _LEAST_CYCLES):
                    return self._trains.samples
                self._run(bundles, cycle)
        return self._trains.samples

    def _cycles(self) -> Iterable[int]:
        """The first one is not counted: connections are new, and the sizes of messages not known."""
        return range(2) if self._quick else itertools.count()

    def _run(self, bundles: list[Bundle], cycle: int, *, tiny: bool = False) -> None:
        for bundle in bundles:
            if any(self._rank in flow for flow in bundle):
                self._trains.run(bundle, cycle, tiny=tiny)

    def _go_on(self, what: object, end: float, cycle: int) -> bool:
        """Whether there is time for something, as rank 0 says, or the cycle is one of the least."""
        now = time.monotonic()
        self._took[self._doing] = now - self._decided
        self._doing, self._decided = what, now
        in_time = now + self._took.get(what, 0.0) <= end
        answer = torch.tensor([in_time or cycle < _LEAST_CYCLES])
        dist.broadcast(answer, group=self._group, group_src=0)
        return bool(answer)
