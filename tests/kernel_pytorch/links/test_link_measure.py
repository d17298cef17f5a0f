"""Links of real groups: of one host, and of two whose links are shaped."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
import torch.distributed as dist
from benchmarks.links import Links, why_no_links
from tests.support.worlds import World

from kernel_pytorch.groups import GroupError
from kernel_pytorch.links.facts import MeasuredLinks
from kernel_pytorch.links.measure import measure_links

RANK = Path(__file__).with_name("measured_rank.py")


def measured(group: dist.ProcessGroup, seconds: float) -> MeasuredLinks:
    return measure_links(group, seconds=seconds)


def measured_without_rank_1(group: dist.ProcessGroup) -> str:
    if dist.get_rank(group) == 1:
        os._exit(1)
    with pytest.raises(GroupError) as raised:
        measure_links(group)
    return str(raised.value)


def test_all_ranks_get_the_same():
    with World(3) as world:
        first, *others = world.results(measured, 0.2)
        assert others == [first] * 2
        assert (first.hosts, first.basis) == (((0, 1, 2),), "measured")
        assert [(pair.a, pair.b) for pair in first.pairs] == list(combinations(range(3), 2))
        (inside,) = first.links
        assert (inside.source, inside.target) == (0, 0)
        for figure in (inside.gbit_s, *(pair.round_trip_us for pair in first.pairs)):
            assert 0 < figure.low <= figure.value <= figure.high
            assert figure.samples >= 2
        with pytest.raises(ValueError, match="seconds must be positive, got 0"):
            world.results(measured, 0)


def test_a_rank_that_fails_is_an_error_on_the_others():
    with World(3, timeout_s=5) as world:
        found = world.run(measured_without_rank_1)
        assert isinstance(found[1], EOFError)
        assert all("rank 1 of 3" in found[rank] for rank in (0, 2)), found


def test_hosts_are_found_and_their_links_measured():
    """Four ranks on two hosts in turn, at 200 Mbit/s, of which payload gets 0.96.

    A quarter of the shortest train goes through unshaped; who counted it would find a third more.
    """
    if (why := why_no_links()) is not None:
        pytest.skip(why)
    with Links(2) as links:
        links.shape(200e6, burst_bytes=1 << 19)
        environment = {"MASTER_ADDR": links.address(0), "MASTER_PORT": "29500", "WORLD_SIZE": "4"}
        ranks = [
            links.start(
                rank % 2,
                [sys.executable, str(RANK), "2"],
                environment={**environment, "RANK": str(rank)},
                stdout=subprocess.PIPE,
            )
            for rank in range(4)
        ]
        told = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4
    found = msgspec.json.decode(told[0], type=MeasuredLinks)
    assert found.hosts == ((0, 2), (1, 3))
    for source, target in ((0, 1), (1, 0)):
        assert found.gbit_s(source, target) == pytest.approx(0.192, rel=0.15)
    assert found.gbit_s(0, 0) > 1
