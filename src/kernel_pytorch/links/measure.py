"""Measuring the links between the ranks of a group.

Rates are those of the second half of a train of messages that leave without a pause: what a link lets through
at first (a token bucket's burst, the buffers on the way) says nothing of what it carries.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from ..groups import GroupError, tell_all
from ..machine.files import Files
from .facts import Figure, HostLink, Hosts, MeasuredLinks, RankPair
from .hosts import RankHome, group_by_host
from .rounds import rounds_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PINGS = 5
_PING_SHARE = 0.2
"""Of the time, for round trips; the rest is for rates."""
_LEAST_CYCLES = 3
"""Cycles that are measured in any case; the first one is not counted."""
_MESSAGE_BYTES = 1 << 18
_LEAST_MESSAGES = 8
_MOST_MESSAGES = 512
_TRAIN_S = 0.05
"""How long a train is to take."""
_RESAMPLES = 2_000


class _Sample(msgspec.Struct):
    kind: str
    """trip: seconds of a round trip; rate: bytes per second from ``a`` to ``b``."""
    a: int
    b: int
    value: float


def measure_links(process_group: ProcessGroup | None = None, *, seconds: float = 3.0) -> MeasuredLinks:
    """Measure all pairs of hosts and of ranks. All ranks call this; nothing else may use the group meanwhile.

    Args:
        process_group: of two ranks or more; default: all ranks.
        seconds: after which rank 0 has all stop. What was not measured by then is missing.

    Returns:
        The same on all ranks.

    Raises:
        GroupError: a rank failed or did not answer within the group's timeout.
        ValueError: ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    group = process_group or dist.group.WORLD
    begin = time.monotonic()
    answers = tell_all(lambda: msgspec.json.encode(_home()), group, what="say where it runs")
    hosts = group_by_host([msgspec.json.decode(answer, type=RankHome) for answer in answers])
    assert group is not None
    try:
        samples = _Ranks(group, hosts, begin, seconds).measured()
    except RuntimeError as error:
        if isinstance(error, GroupError):
            raise
        reason = str(error).partition("\n")[0]
        raise GroupError(
            f"the links could not be measured: a rank failed or did not answer: {reason}"
        ) from error
    told = tell_all(lambda: msgspec.json.encode(samples), group, what="measure its links")
    found = [sample for answer in told for sample in msgspec.json.decode(answer, type=list[_Sample])]
    took = msgspec.json.decode(tell_all(lambda: msgspec.json.encode(time.monotonic() - begin), group)[0])
    return _links(hosts, found, took)


def _home() -> RankHome:
    files = Files()
    return RankHome(
        boot_id=files.text("proc/sys/kernel/random/boot_id"),
        network_namespace=files.link_name("proc/self/ns/net"),
        hostname=socket.gethostname(),
    )


class _Ranks:
    """This rank's part in measuring."""

    def __init__(self, group: ProcessGroup, hosts: Hosts, begin: float, seconds: float) -> None:
        self._group, self._hosts, self._begin, self._seconds = group, hosts, begin, seconds
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._samples: list[_Sample] = []
        self._messages: dict[tuple[int, int], int] = {}
        """How many messages make a train, by pair of ranks of which this is the second."""

    def measured(self) -> list[_Sample]:
        for cycle, _ in enumerate(self._until(_PING_SHARE * self._seconds)):
            for pairs in rounds_of(self._size):
                self._each(pairs, self._trip, "trip" if cycle else "")
        for cycle, _ in enumerate(self._until(self._seconds)):
            for pairs in self._trains():
                self._each(pairs, self._train, "rate" if cycle else "")
        return self._samples

    def _until(self, seconds: float) -> Iterator[None]:
        """Cycles; a clock of one rank ends them for all, or some would wait for others that have left."""
        for cycle in range(1_000):
            late = time.monotonic() - self._begin > seconds
            go_on = torch.tensor([not late or cycle < _LEAST_CYCLES])
            dist.broadcast(go_on, group=self._group, group_src=0)
            if not go_on:
                return
            yield

    def _trains(self) -> Iterator[list[tuple[int, int]]]:
        """Rounds of pairs of ranks, from the first to the second, that are busy at the same time."""
        for pairs in rounds_of(len(self._hosts)):
            ranks = [(self._hosts[a][0], self._hosts[b][0]) for a, b in pairs]
            yield ranks
            yield [(b, a) for a, b in ranks]
        inside = [(ranks[0], ranks[1]) for ranks in self._hosts if len(ranks) > 1]
        if inside:
            yield inside

    def _each(self, pairs: list[tuple[int, int]], measure: Callable[[int, int], float], kind: str) -> None:
        for a, b in pairs:
            if self._rank in (a, b):
                value = measure(a, b)
                if kind and self._rank == b:
                    self._samples.append(_Sample(kind, a, b, value))

    def _trip(self, a: int, b: int) -> float:
        """Seconds of a round trip from ``b``, the shortest of a few. Receives are posted before any send."""
        peer = a if self._rank == b else b
        mine, theirs = torch.zeros(1, dtype=torch.uint8), torch.zeros(_PINGS, dtype=torch.uint8)
        receives = [self._receive(theirs[i : i + 1], peer) for i in range(_PINGS)]
        times = []
        for receive in receives:
            begin = time.perf_counter()
            if self._rank == b:
                self._send(mine, peer).wait()
                receive.wait()
                times.append(time.perf_counter() - begin)
            else:
                receive.wait()
                self._send(mine, peer).wait()
        return min(times, default=0.0)

    def _train(self, a: int, b: int) -> float:
        """Bytes per second from ``a`` to ``b``, as ``b`` receives them."""
        count = torch.tensor([self._messages.get((a, b), _LEAST_MESSAGES)])
        if self._rank == a:
            self._receive(count, b).wait()
            data = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
            for work in [self._send(data, b) for _ in range(int(count))]:
                work.wait()
            return 0.0
        data = torch.empty(_MESSAGE_BYTES, dtype=torch.uint8)
        receives = [self._receive(data, a) for _ in range(int(count))]
        self._send(count, a).wait()
        begin, arrivals = time.perf_counter(), []
        for receive in receives:
            receive.wait()
            arrivals.append(time.perf_counter())
        half = len(arrivals) // 2
        rate = (len(arrivals) - half) * _MESSAGE_BYTES / (arrivals[-1] - arrivals[half - 1])
        wanted = rate * _TRAIN_S / _MESSAGE_BYTES
        if arrivals[-1] - begin < _TRAIN_S:
            self._messages[a, b] = int(min(max(_LEAST_MESSAGES, wanted), _MOST_MESSAGES))
        return rate

    def _send(self, tensor: torch.Tensor, peer: int) -> dist.Work:
        return cast("dist.Work", dist.isend(tensor, group=self._group, group_dst=peer))

    def _receive(self, tensor: torch.Tensor, peer: int) -> dist.Work:
        return cast("dist.Work", dist.irecv(tensor, group=self._group, group_src=peer))


def _links(hosts: Hosts, samples: list[_Sample], seconds: float) -> MeasuredLinks:
    by: dict[tuple[str, int, int], list[float]] = {}
    for sample in samples:
        by.setdefault((sample.kind, sample.a, sample.b), []).append(sample.value)
    host = {rank: index for index, ranks in enumerate(hosts) for rank in ranks}
    return MeasuredLinks(
        hosts=hosts,
        basis="measured",
        links=tuple(
            HostLink(source=host[a], target=host[b], gbit_s=_figure(values, 8e-9))
            for (kind, a, b), values in sorted(by.items())
            if kind == "rate"
        ),
        pairs=tuple(
            RankPair(a=a, b=b, round_trip_us=_figure(values, 1e6))
            for (kind, a, b), values in sorted(by.items())
            if kind == "trip"
        ),
        seconds=seconds,
    )


def _figure(values: list[float], unit: float) -> Figure:
    """The median and the interval that resampling gives it."""
    found = np.array(values) * unit
    draws = np.random.default_rng(0).choice(found, size=(_RESAMPLES, len(found)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Figure(value=float(np.median(found)), low=float(low), high=float(high), samples=len(found))
