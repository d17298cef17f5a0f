"""Host links while a mesh is filled; hosts that may be exchanged: each against its definition."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.placement.host_traffic import HostLinks, alike_hosts, busiest_link

seeds = st.integers(0, 2**32 - 1)


def busiest(traffic: np.ndarray, hosts: list[int]) -> float:
    """Place by place."""
    loads = [0.0]
    for host in set(hosts):
        here = [i for i, other in enumerate(hosts) if other == host]
        there = [i for i, other in enumerate(hosts) if other != host]
        loads += [traffic[np.ix_(here, there)].sum(), traffic[np.ix_(there, here)].sum()]
    return max(loads)


@given(seed=seeds)
def test_links_step_by_step(seed: int):
    random = Random(seed)
    size, count = random.randint(1, 7), random.randint(1, 4)
    traffic = np.array([[float(random.choice([0, 1, 5])) for _ in range(size)] for _ in range(size)])
    links, hosts = HostLinks(traffic, count), []
    for step in range(size):
        first = [*hosts, 0]
        after = links.busiest_after()
        for host in range(count):
            first[-1] = host
            assert after[host] == busiest(traffic[: step + 1, : step + 1], first)
        if random.random() < 0.3:  # in vain
            links.add(random.randrange(count))
            links.remove()
        hosts.append(random.randrange(count))
        links.add(hosts[-1])
    assert busiest_link(traffic, hosts) == busiest(traffic, hosts)


@given(seed=seeds)
def test_interchangeable_hosts(seed: int):
    random = Random(seed)
    hosts = random.choice([[0, 1], [0, 0, 1, 1], [0, 1, 0, 1, 2, 2], [0, 0, 1, 2, 2], [0, 1, 2, 3]])
    size = len(hosts)
    levels = np.array([[random.choice([0, 0, 0, 1]) for _ in hosts] for _ in hosts])
    levels = np.triu(levels, 1) + np.triu(levels, 1).T
    ignored = np.diag([random.choice([0, 1]) for _ in hosts])
    traits = [(random.random() < 0.1,) for _ in hosts]
    found = alike_hosts(hosts, levels + ignored, traits)
    for a in range(size):
        for b in range(size):
            mine, other = ([i for i in range(size) if hosts[i] == hosts[x]] for x in (a, b))
            expected = hosts[a] != hosts[b] and len(mine) == len(other) and mine.index(a) == other.index(b)
            if expected:
                moved = list(range(size))
                for x, y in zip(mine, other, strict=True):
                    moved[x], moved[y] = y, x
                expected = bool((levels[np.ix_(moved, moved)] == levels).all()) and all(
                    traits[i] == traits[moved[i]] for i in range(size)
                )
            assert (b in found[a]) == expected
