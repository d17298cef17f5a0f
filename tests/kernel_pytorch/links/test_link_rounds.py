from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.links.facts import Hosts, host_of
from kernel_pytorch.links.rounds import Bundle, double, inside, single


@st.composite
def any_hosts(draw) -> Hosts:
    host = draw(st.lists(st.integers(0, 6), min_size=1, max_size=12))
    order = list(dict.fromkeys(host))
    return tuple(tuple(rank for rank, of in enumerate(host) if of == each) for each in order)


def check_free(rounds: list[list[Bundle]], hosts: Hosts) -> None:
    """No host is in two bundles of a round."""
    of = host_of(hosts)
    for bundles in rounds:
        busy = Counter(host for bundle in bundles for host in {of[rank] for flow in bundle for rank in flow})
        assert max(busy.values()) == 1


@given(any_hosts())
def test_each_host_sends_to_each_other_alone(hosts: Hosts):
    rounds = single(hosts)
    check_free(rounds, hosts)
    flows = [flow for bundles in rounds for (flow,) in bundles]
    of = host_of(hosts)
    count = len(hosts)
    pairs = sorted((a, b) for a in range(count) for b in range(count) if a != b)
    assert sorted((of[a], of[b]) for a, b in flows) == pairs


@given(any_hosts())
def test_each_host_with_two_ranks_is_measured_inside(hosts: Hosts):
    rounds = inside(hosts)
    check_free(rounds, hosts)
    flows = [flow for bundles in rounds for (flow,) in bundles]
    assert flows == [ranks[:2] for ranks in hosts if len(ranks) > 1]


@given(any_hosts())
def test_two_flows_leave_each_host_that_can(hosts: Hosts):
    rounds = double(hosts)
    check_free(rounds, hosts)
    of, count = host_of(hosts), len(hosts)
    ways: Counter[tuple[int, ...]] = Counter()
    for bundles in rounds:
        for (a, b), (c, d) in bundles:
            assert of[a] == of[c]
            assert (a != c) is (len(hosts[of[a]]) > 1)
            assert b != d
            ways[of[a], of[b], of[d]] += 1
    assert set(ways.values()) <= {1}
    big = [host for host in range(count) if len(hosts[host]) > 1]
    assert {way for way in ways if way[1] == way[2]} == {(a, b, b) for a in big for b in big if a != b}
    assert [source for source, b, d in sorted(ways) if b != d] == (list(range(count)) if count > 2 else [])


@pytest.mark.parametrize("hosts", [((0,),), ((0, 1, 2),)])
def test_one_host_has_no_others(hosts: Hosts):
    assert single(hosts) == double(hosts) == []
