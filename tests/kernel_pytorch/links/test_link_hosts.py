from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.links.facts import host_of
from kernel_pytorch.links.hosts import RankHome, group_by_host, host_names
from kernel_pytorch.links.rounds import rounds_of


def home(boot: str | None, namespace: str | None = "net:1", hostname: str | None = None) -> RankHome:
    return RankHome(boot_id=boot, network_namespace=namespace, hostname=hostname)


def test_ranks_share_a_host_by_boot_and_namespace():
    homes = [home("x"), home("y"), home("x"), home("x", "net:2"), home(None), home(None), home("y", None)]
    hosts = group_by_host(homes)
    assert hosts == ((0, 2), (1,), (3,), (4,), (5,), (6,))
    assert host_of(hosts) == (0, 1, 0, 2, 3, 4, 5)


def test_hosts_have_names_that_differ():
    homes = [home("x", hostname="gpu1"), home("y", hostname="gpu1"), home("z", hostname="gpu2"), home("w")]
    assert host_names(homes, group_by_host(homes)) == ("gpu1#1", "gpu1#2", "gpu2", "d")
    many = [home(str(number)) for number in range(28)]
    assert host_names(many, group_by_host(many))[-3:] == ("z", "aa", "ab")


@pytest.mark.parametrize("hosts", [((0, 2),), ((0, 1), (1,)), ((1,), (2,))])
def test_hosts_that_lack_a_rank(hosts):
    with pytest.raises(ValueError, match="hosts must have the ranks from 0 on, each once"):
        host_of(hosts)


@given(st.integers(0, 40))
def test_all_pairs_meet_once_and_no_host_is_busy_twice(count: int):
    rounds = rounds_of(count)
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(range(count), 2))
    for pairs in rounds:
        hosts = [host for pair in pairs for host in pair]
        assert len(hosts) == len(set(hosts))
    assert len(rounds) == (count - 1 + count % 2 if count > 1 else 0)
