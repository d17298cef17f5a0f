"""What the ranks saw, made up, and the figures that it must give."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.links.facts import MeasuredLinks
from kernel_pytorch.links.rounds import Bundle, Flow
from kernel_pytorch.links.samples import CpuTime, Samples, Train, Trip, links_of, rate_at_once

HOSTS = ((0, 2), (1, 3))
ALONE, BOTH = ((0, 1),), ((0, 1), (2, 3))
KB = 1000


def arrivals(rate: float, burst: float = 0.0, begin: float = 0.0, count: int = 16) -> list[float]:
    """Of messages of 100 KB over a link that lets a burst through at once."""
    return [begin + max(0.0, 100 * KB * n - burst) / rate + 1e-6 * n for n in range(1, count + 1)]


def train(times: list[float], flow: Flow = (0, 1), bundle: Bundle = ALONE, cycle: int = 1) -> Train:
    return Train(cycle, bundle, flow, 100 * KB, times)


def made(*trains: Train, cpu: tuple[CpuTime, ...] = ()) -> MeasuredLinks:
    return links_of(HOSTS, ("a", "b"), [Samples(trains=[*trains], cpu=[*cpu])], 1.0)


@given(st.floats(1e6, 1e9), st.floats(0, 700 * KB))
def test_a_burst_does_not_count(rate: float, burst: float):
    assert rate_at_once([train(arrivals(rate, burst))]) == pytest.approx(rate, rel=0.02)


@given(st.integers(0, 13), st.integers(1, 2))
def test_a_receiver_that_was_away_for_a_while(at: int, length: int):
    """What came meanwhile it sees all at once."""
    times = arrivals(25e6)
    for number in range(at, at + length):
        times[number] = times[at + length] - 1e-7 * (at + length - number)
    assert rate_at_once([train(times)]) == pytest.approx(25e6, rel=0.01)


def test_a_receiver_that_was_away_all_the_time_saw_no_rate():
    late = [0.2 + 1e-6 * n for n in range(16)]
    assert rate_at_once([train(late)]) is None
    assert made(train(late), train(arrivals(25e6), cycle=2)).links[0].gbit_s.samples == 1


@given(st.floats(0.2, 0.8))
def test_flows_that_share_a_link_have_its_rate_together(share: float):
    trains = [
        train(arrivals(25e6 * part), flow, BOTH) for part, flow in zip((share, 1 - share), BOTH, strict=True)
    ]
    assert rate_at_once(trains) == pytest.approx(25e6, rel=0.02)


@pytest.mark.parametrize(("rate", "share"), [(12.5e6, 0.5), (25e6, 1.0)])
def test_each_has_a_share(rate: float, share: float):
    cycles = [
        each
        for cycle in (2, 3)
        for each in (
            train(arrivals(25e6), cycle=cycle),
            train(arrivals(rate), (0, 1), BOTH, cycle),
            train(arrivals(rate, begin=0.001), (2, 3), BOTH, cycle),
        )
    ]
    links = made(*cycles, train(arrivals(25e6), cycle=4))
    assert links.gbit_s(0, 1) == pytest.approx(0.2, rel=0.01)
    (shared,) = links.shared
    assert (shared.source, shared.targets, shared.share.samples) == (0, (1, 1), 2)
    assert shared.share.value == pytest.approx(share, rel=0.02)


def test_what_only_some_flows_saw_is_no_share():
    alone, one = train(arrivals(25e6)), train(arrivals(25e6), (0, 1), BOTH)
    assert made(alone, one).shared == ()
    other = train(arrivals(25e6), (2, 3), BOTH, cycle=2)
    assert made(alone, one, other).shared == ()


def cpu_of(size: int, *seconds: tuple[float, float]) -> tuple[CpuTime, ...]:
    return tuple(CpuTime(cycle, (0, 1), size, end) for cycle, ends in enumerate(seconds, 1) for end in ends)


def test_cpu_time_is_of_both_ends_and_told_apart():
    tiny = cpu_of(8, (10e-6, 20e-6), (11e-6, 21e-6), (12e-6, 22e-6))
    big = cpu_of(10_008, (15e-6, 27e-6), (16e-6, 26e-6), (30e-6, 40e-6))
    links = made(train(arrivals(25e6)), cpu=tiny + big)
    (link,) = links.links
    assert link.message_us.value == pytest.approx(32)
    assert (link.message_us.low, link.message_us.high) == pytest.approx((30, 34))
    assert link.byte_ns.value == pytest.approx(1.0)


def test_what_cannot_be_told_apart_is_unknown():
    tiny = cpu_of(8, (10e-6, 20e-6))
    big = cpu_of(10_008, (10e-6, 19e-6), (15e-6, 27e-6))
    (link,) = made(train(arrivals(25e6)), cpu=tiny + big).links
    assert (link.message_us.value, link.byte_ns) == (pytest.approx(30), None)
    (link,) = made(train(arrivals(25e6)), cpu=cpu_of(8, (1e-6, 2e-6))[:1]).links
    assert (link.message_us, link.byte_ns) == (None, None)


def test_a_pair_is_one_whoever_began():
    trips = [Samples(trips=[Trip(2, 1, 3e-3), Trip(1, 2, 1e-3)]), Samples(trips=[Trip(0, 2, 1e-4)])]
    links = links_of(HOSTS, ("a", "b"), trips, 1.0)
    assert [(pair.a, pair.b, pair.round_trip_us.samples) for pair in links.pairs] == [(0, 2, 1), (1, 2, 2)]
    assert links.round_trip_us(2, 1) == pytest.approx(2000)
    assert links.host_round_trip_us(1, 0).value == pytest.approx(2000)
    assert links.host_round_trip_us(0, 0).value == pytest.approx(100)
    assert links.host_round_trip_us(1, 1) is None


def test_samples_pass_as_messages():
    samples = Samples(trips=[Trip(0, 1, 1.0)], trains=[train([1.0, 2.0])], cpu=[*cpu_of(8, (1.0, 2.0))])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(samples), type=Samples) == samples


def test_the_interval_of_a_median():
    """Ranks of order statistics as in tables of the sign test."""

    def interval(count: int) -> tuple[float, float]:
        trips = [Trip(0, 1, 1e-6 * value) for value in range(1, count + 1)]
        (pair,) = links_of(HOSTS, ("a", "b"), [Samples(trips=trips)], 1.0).pairs
        return round(pair.round_trip_us.low), round(pair.round_trip_us.high)

    tables = {1: (1, 1), 5: (1, 5), 6: (1, 6), 8: (1, 8), 9: (2, 8), 12: (3, 10), 17: (5, 13), 25: (8, 18)}
    assert {count: interval(count) for count in tables} == tables
