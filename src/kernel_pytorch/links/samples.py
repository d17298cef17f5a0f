"""What the ranks saw while they measured, and the links that it makes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import median

import msgspec
import numpy as np

from .facts import Figure, HostLink, Hosts, MeasuredLinks, RankPair, SharedLink, host_of
from .racks import racks_of
from .rounds import Bundle, Flow

TINY_BYTES = 8
"""Of messages that are for the CPU time of a message."""
_MOST_OF_AVERAGE = 8
"""TCP's slow start makes the second half of a train up to five times as fast as all of it."""


class Trip(msgspec.Struct):
    """A round trip of a small message."""

    a: int
    b: int
    seconds: float


class Train(msgspec.Struct):
    """Messages of one size that left without a pause, as they came in on one flow of a bundle."""

    cycle: int
    bundle: Bundle
    flow: Flow
    message_bytes: int
    arrivals: list[float]
    """Seconds of each message; 0 is about the same time on all flows of the bundle."""


class CpuTime(msgspec.Struct):
    """CPU time of one end of a train that was alone, for each of its messages."""

    cycle: int
    flow: Flow
    message_bytes: int
    seconds: float


class Samples(msgspec.Struct):
    """Of one rank."""

    trips: list[Trip] = []
    trains: list[Train] = []
    cpu: list[CpuTime] = []


def rate_at_once(trains: Sequence[Train]) -> float | None:
    """Bytes per second of all flows of a bundle together, while all of them flow.

    What a link lets through at first (a token bucket's burst, the buffers on the way) says nothing of what it
    carries: only the second half of the flow that is the first to end counts, and what the others get in that
    time. A receiver that is kept from its CPU for a while sees messages late, and then the next ones too
    fast: the rate is the median over parts of that time, each half as long. None: it was away for so long
    that the rate from the start of the trains on is a small part of this.
    """
    first = min(trains, key=lambda train: train.arrivals[-1])
    begin, end = first.arrivals[len(first.arrivals) // 2 - 1], first.arrivals[-1]
    times = np.unique([time for train in trains for time in train.arrivals if begin <= time <= end])
    came = np.zeros(len(times))
    for train in trains:
        numbers = np.arange(1, len(train.arrivals) + 1)
        came += np.interp(times, train.arrivals, numbers * float(train.message_bytes))
    part = (len(times) - 1) // 2
    rate = float(np.median((came[part:] - came[:-part]) / (times[part:] - times[:-part])))
    return rate if rate <= _MOST_OF_AVERAGE * came[-1] / end else None


def links_of(hosts: Hosts, names: Sequence[str], found: Sequence[Samples], seconds: float) -> MeasuredLinks:
    """The links that samples of all ranks make.

    Args:
        hosts: of the ranks.
        names: of the hosts.
        found: by rank.
        seconds: that measuring took.
    """
    trains: dict[tuple[Bundle, int], list[Train]] = defaultdict(list)
    for samples in found:
        for train in samples.trains:
            trains[train.bundle, train.cycle].append(train)
    rates: dict[Bundle, dict[int, float]] = defaultdict(dict)
    for (bundle, cycle), seen in sorted(trains.items()):
        if len(seen) == len(bundle) and (rate := rate_at_once(seen)) is not None:
            rates[bundle][cycle] = rate
    of, cpu = host_of(hosts), _cpu(found)
    trips: dict[tuple[int, int], list[float]] = defaultdict(list)
    for samples in found:
        for trip in samples.trips:
            trips[min(trip.a, trip.b), max(trip.a, trip.b)].append(trip.seconds)
    links = MeasuredLinks(
        hosts=hosts,
        basis="measured",
        links=tuple(
            HostLink(
                source=of[bundle[0][0]],
                target=of[bundle[0][1]],
                gbit_s=_figure(by_cycle.values(), 8e-9),
                **cpu.get(bundle[0], {}),
            )
            for bundle, by_cycle in rates.items()
            if len(bundle) == 1
        ),
        pairs=tuple(
            RankPair(a=a, b=b, round_trip_us=_figure(values, 1e6)) for (a, b), values in sorted(trips.items())
        ),
        shared=_shared(of, rates),
        names=tuple(names),
        seconds=seconds,
    )
    return replace(links, racks=racks_of(links))


def _shared(of: Sequence[int], rates: Mapping[Bundle, Mapping[int, float]]) -> tuple[SharedLink, ...]:
    """What bundles of two flows had of what the flows had alone in the same cycle."""
    alone = {(of[a], of[b]): by_cycle for ((a, b), *more), by_cycle in rates.items() if not more}
    found = []
    for bundle, by_cycle in rates.items():
        if len(bundle) != 2:
            continue
        (source, target), (_, other) = [(of[a], of[b]) for a, b in bundle]
        parts = [alone.get((source, to), {}) for to in (target, other)]
        shares = [
            rate / sum(part[cycle] for part in parts)
            for cycle, rate in by_cycle.items()
            if all(cycle in part for part in parts)
        ]
        if shares:
            found.append(SharedLink(source=source, targets=(target, other), share=_figure(shares, 1.0)))
    return tuple(found)


def _cpu(found: Sequence[Samples]) -> dict[Flow, dict[str, Figure]]:
    """CPU time of messages, by flow: of tiny ones, and of each byte beyond those."""
    ends: dict[tuple[Flow, int, int], list[float]] = defaultdict(list)
    for samples in found:
        for sample in samples.cpu:
            ends[sample.flow, sample.message_bytes, sample.cycle].append(sample.seconds)
    both: dict[Flow, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (flow, size, _), seconds in sorted(ends.items()):
        if len(seconds) == 2:
            both[flow][size].append(sum(seconds))
    figures: dict[Flow, dict[str, Figure]] = {}
    for flow, by_size in both.items():
        if TINY_BYTES not in by_size:
            continue
        message = _figure(by_size.pop(TINY_BYTES), 1e6)
        figures[flow] = {"message_us": message}
        more = [
            (seconds * 1e6 - message.value) / (size - TINY_BYTES) * 1e3
            for size, values in by_size.items()
            for seconds in values
        ]
        if more and (byte := _figure(more, 1.0)).low > 0:
            figures[flow]["byte_ns"] = byte
    return figures


def _figure(values: Iterable[float], unit: float) -> Figure:
    found = sorted(value * unit for value in values)
    beyond = _beyond(len(found))
    return Figure(value=median(found), low=found[beyond], high=found[-1 - beyond], samples=len(found))


@cache
def _beyond(count: int) -> int:
    """How many of ``count`` samples lie outside the 95 % interval of their median, on either side.

    The number of samples below the median is binomial, whatever their distribution.
    """
    beyond, below = 0, 1  # of all 2 ** count ways, those with no more than ``beyond`` samples below
    while 40 * below <= 1 << count:
        beyond += 1
        below += math.comb(count, beyond)
    return max(0, beyond - 1)
