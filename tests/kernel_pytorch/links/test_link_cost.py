from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from made_up_links import exactly, made_up

from kernel_pytorch.links.collectives.steps import Groups, Steps, plan
from kernel_pytorch.links.cost import expected
from kernel_pytorch.links.facts import HostLink, Hosts, MeasuredLinks, RankPair
from kernel_pytorch.links.methods import CommunicationPattern, Operation

AABB: Hosts = ((0, 1), (2, 3))
ABAB: Hosts = ((0, 2), (1, 3))
COUNT = 1 << 22  # 16 MiB of float32
BYTES = 4 * COUNT


def ring(order: Sequence[int], count: int) -> Steps:
    (steps,) = plan(Operation.ALL_REDUCE, CommunicationPattern.RING, [count], [[p] for p in order], order)
    return steps


def hierarchical(hosts: Groups, count: int) -> Steps:
    (steps,) = plan(Operation.ALL_REDUCE, CommunicationPattern.HIERARCHICAL, [count], hosts)
    return steps


def links_of(hosts: Hosts, gbit_s: float = 0.192, trip_us: float = 0.0, inside: float = 1e6) -> MeasuredLinks:
    links = made_up(hosts, gbit_s)
    own = tuple(HostLink(source=host, target=host, gbit_s=exactly(inside)) for host in range(len(hosts)))
    size = links.size
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    apart = [trip_us if links.host_of[a] != links.host_of[b] else 0.0 for a, b in pairs]
    trips = tuple(
        RankPair(a=a, b=b, round_trip_us=exactly(trip)) for (a, b), trip in zip(pairs, apart, strict=True)
    )
    return replace(links, links=links.links + own, pairs=trips)


@pytest.mark.parametrize(("hosts", "factor"), [(AABB, 1.5), (ABAB, 3.0)])
def test_a_ring_is_limited_by_its_hops_between_hosts(hosts: Hosts, factor: float):
    """Each hop carries 2 (P - 1) / P of all bytes, and each host's link one hop or two."""
    found = expected(ring(range(4), COUNT), links_of(hosts), 4)
    assert found.seconds == pytest.approx(factor * BYTES * 8e-9 / 0.192, rel=1e-6)
    assert found.sent_bytes == found.received_bytes == (factor * BYTES, factor * BYTES)


@pytest.mark.parametrize("hosts", [AABB, ABAB])
def test_hierarchical_sends_all_bytes_once_between_two_hosts(hosts: Hosts):
    found = expected(hierarchical(hosts, COUNT), links_of(hosts), 4)
    assert found.busiest_s == pytest.approx(BYTES * 8e-9 / 0.192, rel=1e-6)
    assert found.sent_bytes == (BYTES, BYTES)


def test_small_messages_take_a_round_trip_for_each_step():
    far = links_of(AABB, gbit_s=1e6, trip_us=20_000.0)
    assert expected(ring(range(4), 16), far, 4).round_trips_s == pytest.approx(6 * 0.02)
    assert expected(hierarchical(AABB, 16), far, 4).round_trips_s == pytest.approx(2 * 0.02)


def test_chunks_hide_all_but_the_busiest_link():
    links = links_of(AABB, gbit_s=1.0, inside=1.0)
    steps = hierarchical(AABB, COUNT)
    whole, cut = expected(steps, links, 4), expected(steps, links, 4, chunks=8)
    assert whole.seconds > cut.seconds > cut.busiest_s == whole.busiest_s
    assert cut.seconds - cut.busiest_s == pytest.approx((whole.seconds - whole.busiest_s) / 8)


def test_a_slow_pair_limits_what_goes_between_the_two():
    rates = {(a, b): 1.0 for a in range(3) for b in range(3) if a != b} | {(0, 1): 0.1}
    links = replace(links_of(((0,), (1,), (2,))), links=made_up(((0,), (1,), (2,)), rates).links)
    there, back = expected(ring([0, 1, 2], 300), links, 4), expected(ring([2, 1, 0], 300), links, 4)
    assert there.seconds == pytest.approx(10 * back.seconds)


def test_what_was_not_measured_has_no_time_but_bytes():
    links = replace(links_of(AABB), pairs=())
    found = expected(ring(range(4), COUNT), links, 4)
    assert (found.seconds, found.busiest_s, found.round_trips_s) == (None, None, None)
    assert found.sent_bytes == (1.5 * BYTES, 1.5 * BYTES)


def test_no_chunks():
    with pytest.raises(ValueError, match="chunks must be at least 1, got 0"):
        expected([], links_of(AABB), 4, chunks=0)
