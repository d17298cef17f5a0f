"""Expected times and bytes of collectives, against their transfers one by one and against what ranks send."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from made_up_links import exactly, made_up
from tests.support.worlds import World

from kernel_pytorch.links.collectives import run as run_module
from kernel_pytorch.links.collectives.groups import Group
from kernel_pytorch.links.collectives.steps import plan
from kernel_pytorch.links.cost import Expected, expected, expected_time, expected_times
from kernel_pytorch.links.facts import HostLink, Hosts, MeasuredLinks, RankPair
from kernel_pytorch.links.methods import PATTERNS, CommunicationPattern, Operation
from kernel_pytorch.links.topology import NetworkTopology, links_of

PLANNED = (Operation.ALL_REDUCE, Operation.ALL_GATHER, Operation.REDUCE_SCATTER)
RING, HIERARCHICAL = CommunicationPattern.RING, CommunicationPattern.HIERARCHICAL


def links_between(
    hosts: Hosts, gbit_s: float = 1.0, trip_us: float = 100.0, inside: float = 8.0
) -> MeasuredLinks:
    links = made_up(hosts, gbit_s)
    own = tuple(HostLink(source=host, target=host, gbit_s=exactly(inside)) for host in range(len(hosts)))
    pairs = [(a, b) for a in range(links.size) for b in range(a + 1, links.size)]
    apart = {pair: trip_us if links.host_of[pair[0]] != links.host_of[pair[1]] else 10.0 for pair in pairs}
    trips = tuple(RankPair(a=a, b=b, round_trip_us=exactly(trip)) for (a, b), trip in apart.items())
    return replace(links, links=links.links + own, pairs=trips)


@st.composite
def groupings(draw: st.DrawFn) -> Hosts:
    size = draw(st.integers(1, 9))
    names = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return tuple(
        tuple(rank for rank in range(size) if names[rank] == name)
        for name in sorted(set(names), key=names.index)
    )


@given(
    hosts=groupings(),
    operation=st.sampled_from(PLANNED),
    pattern=st.sampled_from(PATTERNS),
    parts=st.integers(1, 40),
    chunks=st.integers(1, 5),
)
def test_equals_the_transfers_one_by_one(
    hosts: Hosts, operation: Operation, pattern: CommunicationPattern, parts: int, chunks: int
):
    """With parts of equal size, of which all turns of a ring send the same."""
    links = links_between(hosts)
    count = parts * links.size
    order = [rank for ranks in hosts for rank in ranks]
    edges = [parts * place for place in range(links.size + 1)]
    steps = [step for steps in plan(operation, pattern, edges, hosts, order) for step in steps]
    one_by_one = expected(steps, links, 4, chunks)
    found = expected_time(pattern, operation, 4 * count, links, chunks=chunks)
    assert found.seconds == pytest.approx(one_by_one.seconds)
    assert found.round_trips_s == pytest.approx(one_by_one.round_trips_s)
    assert (found.sent_bytes, found.received_bytes) == (one_by_one.sent_bytes, one_by_one.received_bytes)
    assert (found.steps, found.chunks, found.pattern) == (one_by_one.steps, chunks, pattern)
    a_message = expected_time(pattern, operation, 4 * count, links, chunks=chunks, message_us=1e6)
    most = [
        max((sum(rank in (t.source, t.target) for t in step) for rank in order), default=0) for step in steps
    ]
    assert chunks * len(steps) <= a_message.messages_s <= chunks * sum(most)


def sent(group: dist.ProcessGroup, cases: list[tuple[Operation, CommunicationPattern, int]], hosts: Hosts):
    """Bytes that this rank sends to each other one, by case."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    isend, found = dist.isend, []

    def counting(tensor: torch.Tensor, group: dist.ProcessGroup, group_dst: int):
        found[-1][group_dst] += tensor.numel() * tensor.element_size()
        return isend(tensor, group=group, group_dst=group_dst)

    whole = Group(
        group=group,
        place=rank,
        ranks=tuple(range(size)),
        found=hosts,
        links=links_between(hosts),
        order=tuple(place for places in hosts for place in places),
        seats=tuple(range(size)),
    )
    for operation, pattern, count in cases:
        edges = [count * place // size for place in range(size + 1)]
        pieces = run_module.program(plan(operation, pattern, edges, hosts, whole.order), rank)
        found.append([0] * size)
        with mock.patch.object(dist, "isend", counting):
            run_module.run(pieces, torch.full((count,), float(rank)), whole)
    return found


def test_bytes_are_those_that_ranks_send():
    hosts: Hosts = ((0, 2), (1, 3))
    cases = list(product(PLANNED, PATTERNS, (4, 1001)))
    with World(4) as world:
        by_rank = world.results(sent, cases, hosts)
    for number, (operation, pattern, count) in enumerate(cases):
        found = expected_time(pattern, operation, 4 * count, links_between(hosts))
        for host, ranks in enumerate(hosts):
            leaving = sum(by_rank[a][number][b] for a in ranks for b in range(4) if b not in ranks)
            assert found.sent_bytes[host] == leaving, (operation, pattern, count)


def test_all_to_all_is_one_step_in_which_each_pair_exchanges_its_parts():
    found = expected_time("adaptive", "all_to_all", 4 << 20, links_between(((0, 1), (2, 3))))
    assert (found.steps, found.pattern) == (1, None)
    assert found.sent_bytes == (4 << 20, 4 << 20)  # each of two ranks half of its 4 MiB
    assert found.busiest_s == pytest.approx((4 << 20) * 8e-9)


def test_adaptive_is_the_fastest_of_the_others():
    links = links_between(((0, 1), (2, 3)), gbit_s=0.192, trip_us=300.0)
    for nbytes in (1 << 10, 1 << 16, 16 << 20):
        each = [expected_time(pattern, "all_reduce", nbytes, links) for pattern in PATTERNS]
        best = expected_time("adaptive", "all_reduce", nbytes, links)
        assert best.seconds == min(one.seconds for one in each)
        assert expected_times("all_reduce", nbytes, links)[0] == best
    assert best.pattern is not RING  # which would send half as much again between hosts


def test_participants_only_load_their_own_links():
    links = links_between(((0, 1), (2, 3), (4, 5)))
    found = expected_time(RING, "all_reduce", 3000, links, participants=[5, 2, 3])
    assert found.sent_bytes == (0.0, 4000.0, 4000.0)  # each hop of a ring of three carries 4/3
    alone = expected_time(RING, "all_reduce", 3000, links, participants=[4])
    assert (alone.seconds, alone.steps, alone.sent_bytes) == (0.0, 0, (0.0, 0.0, 0.0))


def test_only_links_that_are_used_must_be_known():
    links = links_between(((0, 1), (2, 3)))
    links = replace(links, links=tuple(link for link in links.links if link.source == link.target))
    assert expected_time(RING, "all_reduce", 1000, links, participants=[2, 3]).seconds is not None
    assert expected_time(RING, "all_reduce", 1000, links).seconds is None
    unknown = expected_time("adaptive", "all_reduce", 4000, links)
    assert (unknown.seconds, unknown.pattern) == (None, HIERARCHICAL)  # which sends least between hosts


def test_the_number_of_chunks_is_of_the_least_time():
    links = links_between(((0, 1), (2, 3)), gbit_s=1.0, inside=1.0)

    def of(chunks: int | None, nbytes: int = 16 << 20, chunk_bytes: int = 64 << 20) -> Expected:
        return expected_time(
            HIERARCHICAL, "all_reduce", nbytes, links, chunks=chunks, chunk_bytes=chunk_bytes
        )

    best = of(None)
    assert best.chunks > 1
    assert best.seconds <= 1.01 * min(of(chunks).seconds for chunks in range(1, 65))
    assert of(None, nbytes=4000).chunks == 1  # round trips cost more than a chunk saves
    assert expected_time(RING, "all_reduce", 16 << 20, links).chunks == 1  # nothing to overlap
    assert of(None, chunk_bytes=100_000).chunks >= (16 << 20) / 100_000


def test_messages_cost_what_is_said():
    links = links_between(((0, 1), (2, 3)))
    free = expected_time(RING, "all_reduce", 4000, links)
    dear = expected_time(RING, "all_reduce", 4000, links, message_us=1000.0)
    assert dear.seconds - free.seconds == pytest.approx(dear.messages_s) == pytest.approx(6e-3)


def test_messages_cost_what_was_measured():
    links = links_between(((0, 1), (2, 3)))
    across = tuple(
        replace(link, message_us=exactly(200.0)) if link.source != link.target else link
        for link in links.links
    )
    found = expected_time(RING, "all_reduce", 4000, replace(links, links=across))
    assert found.messages_s == pytest.approx(6 * 100e-6)  # each step has a message between hosts


def test_a_large_ring_is_not_listed_turn_by_turn():
    links = links_of(NetworkTopology(125, 8), 1000)
    with mock.patch("kernel_pytorch.links.loads.sends", side_effect=AssertionError):
        found = expected_time(RING, "all_reduce", 4_000_000, links)
    assert (found.steps, found.sent_bytes[0]) == (1998, 2 * 3_996_000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nbytes": -1}, "nbytes must not be negative, got -1"),
        ({"chunks": 0}, "chunks must be at least 1, got 0"),
        ({"chunk_bytes": 0}, "chunk_bytes must be positive, got 0"),
        ({"participants": [0, 4]}, r"participants must be some of the ranks 0 to 3, each once, got \[0, 4\]"),
        ({"participants": [1, 1]}, r"each once, got \[1, 1\]"),
        ({"order": [0, 1]}, "order must have the places 0 to 3, each once"),
        ({"pattern": "star"}, "CommunicationPattern must be one of .*, got 'star'"),
    ],
)
def test_bad_input(wrong: dict[str, object], message: str):
    arguments = {
        "pattern": RING,
        "op": "all_reduce",
        "nbytes": 100,
        "links": links_between(((0, 1, 2, 3),)),
    }
    with pytest.raises(ValueError, match=message):
        expected_time(**(arguments | wrong))
