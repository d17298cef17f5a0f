"""A rank's part in measuring: round trips, and trains of messages that leave without a pause."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

from .rounds import Bundle, Flow
from .samples import TINY_BYTES, CpuTime, Samples, Train, Trip, rate_at_once

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_MESSAGES = 16
_TRAIN_S = 0.08
"""How long a train is to take, within the sizes of messages below."""
_LEAST_BYTES, _MOST_BYTES = 1 << 16, 1 << 23
_MOST_GROWTH = 4
_TINY_MESSAGES = 64
"""Of a train that is for the CPU time of a message."""


class Trains:
    """What this rank sends and receives.

    Args:
        group: all methods are called by those of its ranks that they name, in the same order.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.samples = Samples()
        self._group, self._rank = group, dist.get_rank(group)
        self._sizes: dict[Flow, int] = {}
        """Of the messages of trains to this rank."""

    def trip(self, a: int, b: int, count: int, cycle: int) -> None:
        """The shortest of ``count`` round trips from ``b``. Receives are posted before any send."""
        peer = a if self._rank == b else b
        mine, theirs = torch.zeros(1, dtype=torch.uint8), torch.zeros(count, dtype=torch.uint8)
        receives = [self._receive(theirs[i : i + 1], peer) for i in range(count)]
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
        if times and cycle:
            self.samples.trips.append(Trip(a, b, min(times)))

    def run(self, bundle: Bundle, cycle: int, *, tiny: bool = False) -> None:
        """A train on each flow of the bundle, at once. Those of cycle 0 count for nothing.

        The receiver of the first flow starts all: until then no message is on its way.
        """
        starter = bundle[0][1]
        others = {rank for flow in bundle for rank in flow} - {starter}
        size = torch.tensor([TINY_BYTES if tiny else self._sizes.get(bundle[0], _LEAST_BYTES) // len(bundle)])
        if self._rank == starter:
            for work in [self._send(size, rank) for rank in sorted(others)]:
                work.wait()
        else:
            self._receive(size, starter).wait()
        data = torch.zeros(int(size), dtype=torch.uint8)
        numbers = range(_TINY_MESSAGES if tiny else _MESSAGES)
        begin, cpu = time.perf_counter(), time.process_time()
        receives = [
            (flow, [self._receive(data, flow[0]) for _ in numbers])
            for flow in bundle
            if flow[1] == self._rank
        ]
        sends = [self._send(data, b) for _ in numbers for a, b in bundle if a == self._rank]
        for flow, works in receives:
            arrivals = []
            for work in works:
                work.wait()
                arrivals.append(time.perf_counter() - begin)
            if not tiny:
                self._received(Train(cycle, bundle, flow, len(data), arrivals))
        for work in sends:
            work.wait()
        if cycle and len(bundle) == 1:
            spent = (time.process_time() - cpu) / len(numbers)
            self.samples.cpu.append(CpuTime(cycle, bundle[0], len(data), spent))

    def _received(self, train: Train) -> None:
        if train.cycle:
            self.samples.trains.append(train)
        if len(train.bundle) == 1:
            rate = rate_at_once([train])
            # What goes through at first, or comes late to a busy CPU, may look far too fast.
            most = min(_MOST_GROWTH * train.message_bytes, _MOST_BYTES)
            size = 2 * train.message_bytes if rate is None else rate * _TRAIN_S / _MESSAGES
            self._sizes[train.flow] = int(min(max(_LEAST_BYTES, size), most))

    def _send(self, tensor: torch.Tensor, peer: int) -> dist.Work:
        return cast("dist.Work", dist.isend(tensor, group=self._group, group_dst=peer))

    def _receive(self, tensor: torch.Tensor, peer: int) -> dist.Work:
        return cast("dist.Work", dist.irecv(tensor, group=self._group, group_src=peer))
