"""The order of ranks, against all permutations and a cost that is computed place by place."""

from __future__ import annotations

from itertools import permutations
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_links import made_up

from kernel_pytorch.links import order
from kernel_pytorch.links.facts import Hosts, MeasuredLinks
from kernel_pytorch.links.order import rank_order

ABAB: Hosts = ((0, 2), (1, 3))


def busiest_s(links: MeasuredLinks, ranks: tuple[int, ...], traffic: np.ndarray) -> float:
    """Seconds of the busiest link, place by place."""
    count = len(links.hosts)
    between = [[0.0] * count for _ in range(count)]
    for i, a in enumerate(ranks):
        for j, b in enumerate(ranks):
            between[links.host_of[a]][links.host_of[b]] += traffic[i, j]
    seconds = [0.0]
    for host in range(count):
        others = [other for other in range(count) if other != host]
        if not others:
            continue
        out = [links.gbit_s(host, other) for other in others]
        back = [links.gbit_s(other, host) for other in others]
        seconds.append(sum(between[host][other] for other in others) * 8e-9 / max(out))
        seconds.append(sum(between[other][host] for other in others) * 8e-9 / max(back))
        seconds += [between[host][other] * 8e-9 / rate for other, rate in zip(others, out, strict=True)]
    return max(seconds)


def test_a_ring_over_interleaved_hosts_sends_half_as_much_between_them():
    found = rank_order(made_up(ABAB, 0.2))
    assert (found.ranks, found.exact) == ((0, 2, 1, 3), True)
    assert (found.crossing_bytes, found.before_bytes) == (2, 4)
    assert found.busiest_link_s == pytest.approx(found.before_s / 2)


@st.composite
def problems(draw: st.DrawFn) -> tuple[MeasuredLinks, np.ndarray]:
    size = draw(st.integers(1, 6))
    where = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    by_host: dict[int, list[int]] = {}
    for rank, host in enumerate(where):
        by_host.setdefault(host, []).append(rank)
    hosts = tuple(tuple(ranks) for ranks in by_host.values())
    pairs = [(a, b) for a in range(len(hosts)) for b in range(len(hosts)) if a != b]
    rates = {pair: draw(st.sampled_from([0.2, 1.0, 10.0])) for pair in pairs}
    sent = st.lists(st.integers(0, 9), min_size=size * size, max_size=size * size)
    return made_up(hosts, rates), np.array(draw(sent), dtype=float).reshape(size, size)


@given(problems())
def test_no_permutation_is_better(problem: tuple[MeasuredLinks, np.ndarray]):
    links, traffic = problem
    found = rank_order(links, traffic)
    assert found.exact
    assert sorted(found.ranks) == list(range(links.size))
    best = min(busiest_s(links, ranks, traffic) for ranks in permutations(range(links.size)))
    assert found.busiest_link_s == pytest.approx(best)
    assert busiest_s(links, found.ranks, traffic) == pytest.approx(best)
    assert found.before_s == pytest.approx(busiest_s(links, tuple(range(links.size)), traffic))


@given(problems())
def test_exchanges_are_never_worse_than_what_was_given(problem: tuple[MeasuredLinks, np.ndarray]):
    links, traffic = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "MOST_ASSIGNMENTS", 0)
        found = rank_order(links, traffic)
    assert not found.exact
    assert sorted(found.ranks) == list(range(links.size))
    assert busiest_s(links, found.ranks, traffic) == pytest.approx(found.busiest_link_s)
    assert (found.busiest_link_s, found.crossing_bytes) <= (
        found.before_s * (1 + 1e-9),
        max(found.before_bytes, found.crossing_bytes),
    )


def test_many_ranks_are_put_in_order_by_exchange():
    hosts = tuple(tuple(range(host, 32, 4)) for host in range(4))  # 8 on each of 4 hosts, dealt like cards
    found = rank_order(made_up(hosts, 1.0))
    assert not found.exact
    assert (found.crossing_bytes, found.before_bytes) == (4, 32)


@given(problems(), st.integers(0, 7), st.integers(0, 7))
def test_an_exchange_is_scored_as_the_assignment_that_it_makes(
    problem: tuple[MeasuredLinks, np.ndarray], i: int, j: int
):
    links, traffic = problem
    cost, given_to = order._Cost(links, traffic), np.array(links.host_of)
    i, j = i % links.size, j % links.size
    exchanged = given_to.copy()
    exchanged[[i, j]] = exchanged[[j, i]]
    found = order._Exchanges(cost, given_to).score_with(i, j)
    assert found == pytest.approx(cost.score(exchanged))


def test_an_order_of_very_many_ranks_is_found_with_bounded_work():
    hosts = tuple(tuple(range(host, 160, 20)) for host in range(20))
    with (
        mock.patch.object(order, "MOST_EXCHANGES", 100),
        mock.patch.object(order._Exchanges, "score_with", return_value=(1e9, 1e9)) as tried,
    ):
        found = rank_order(made_up(hosts, 1.0))
    assert tried.call_count == 200
    assert (found.exact, found.crossing_bytes) == (False, 20)


def test_without_rates_hosts_count_as_equally_far_apart():
    found = rank_order(MeasuredLinks(hosts=ABAB, basis="default"))
    assert found.ranks == (0, 2, 1, 3)
    assert (found.busiest_link_s, found.before_s) == (None, None)


def test_a_slow_pair_is_not_neighbours():
    rates = {(a, b): 1.0 for a in range(4) for b in range(4) if a != b}
    rates[0, 1] = rates[1, 0] = 0.1
    found = rank_order(made_up(((0,), (1,), (2,), (3,)), rates))
    assert found.busiest_link_s == pytest.approx(8e-9)
    assert abs(found.ranks.index(0) - found.ranks.index(1)) == 2


@pytest.mark.parametrize(
    ("traffic", "told"),
    [
        (np.zeros((3, 3)), r"traffic must be of shape \(4, 4\), a row for each place, got \(3, 3\)"),
        (np.full((4, 4), -1.0), "traffic must have bytes, finite and not negative"),
        (np.full((4, 4), np.nan), "traffic must have bytes, finite and not negative"),
    ],
)
def test_traffic_that_is_none(traffic: np.ndarray, told: str):
    with pytest.raises(ValueError, match=told):
        rank_order(made_up(ABAB, 1.0), traffic)
