"""Links of real groups: of one host, and of three whose links are shaped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import median

import pytest
import torch.distributed as dist
from benchmarks.links import Links, why_no_links
from made_up_links import made_up
from tests.support.worlds import HostWorld, World

from kernel_pytorch.groups import GroupError
from kernel_pytorch.links.facts import Figure, MeasuredLinks
from kernel_pytorch.links.measure import measure_links
from kernel_pytorch.links.saved import measure_or_saved

HOSTS = [0, 1, 0, 1, 2]
RATE = 100e6
PAYLOAD = 0.96
"""Of a rate: the rest is headers."""


def measured(group: dist.ProcessGroup, seconds: float, quick: bool = False) -> MeasuredLinks:
    return measure_links(group, seconds=seconds, quick=quick)


def measured_in_parts(group: dist.ProcessGroup) -> MeasuredLinks:
    """Ranks 0 and 2; rank 1 is alone."""
    two, one = dist.new_group([0, 2]), dist.new_group([1])
    if dist.get_rank() != 1:
        return measure_links(two, seconds=0.1)
    with pytest.raises(ValueError, match="a group of one rank has no links"):
        measure_links(one)
    return made_up(((0,),), {})


def measured_without_rank_1(group: dist.ProcessGroup) -> str:
    if dist.get_rank(group) == 1:
        os._exit(1)
    with pytest.raises(GroupError) as raised:
        measure_links(group)
    return str(raised.value)


def holds(figure: Figure, value: float) -> bool:
    """Whether a figure's interval has a value, or comes within a seventh of it."""
    return figure.low <= 1.15 * value and figure.high >= 0.85 * value


def from_cache(group: dist.ProcessGroup, cache: str, fresh: bool = False) -> tuple[MeasuredLinks, int]:
    """The links, and how many files rank 0 has."""
    os.environ["XDG_CACHE_HOME"] = cache
    links = measure_or_saved(group, seconds=1.0, fresh=fresh)
    dist.barrier(group)
    return links, len(list(Path(cache).rglob("*.json")))


def test_all_ranks_get_the_same():
    with World(3) as world:
        first, *others = world.results(measured, 1.0)
        assert others == [first] * 2
        assert (first.hosts, first.basis) == (((0, 1, 2),), "measured")
        assert [(pair.a, pair.b) for pair in first.pairs] == list(combinations(range(3), 2))
        (inside,) = first.links
        assert (inside.source, inside.target, first.shared, first.racks) == (0, 0, (), ())
        for figure in (inside.gbit_s, inside.message_us, *(pair.round_trip_us for pair in first.pairs)):
            assert 0 < figure.low <= figure.value <= figure.high
            assert figure.samples >= 2
        quick = world.results(measured, 3.0, True)[0]
        assert {link.gbit_s.samples for link in quick.links} <= {1}
        assert {pair.round_trip_us.samples for pair in quick.pairs} == {1}
        part = world.results(measured_in_parts)
        assert part[0] == part[2]
        assert part[0].hosts == ((0, 1),)
        with pytest.raises(ValueError, match="seconds must be positive, got 0"):
            world.results(measured, 0)


def test_a_rank_that_fails_is_an_error_on_the_others():
    with World(3, timeout_s=20) as world:
        found = world.run(measured_without_rank_1)
        assert isinstance(found[1], EOFError)
        assert all("rank 1 of 3" in found[rank] for rank in (0, 2)), found


@pytest.fixture(scope="module")
def shaped() -> Iterator[HostWorld]:
    """Five ranks on three hosts of 100 Mbit/s; a quarter of a train goes through unshaped."""
    if (why := why_no_links()) is not None:
        pytest.skip(why)
    with Links(3) as links:
        links.shape(RATE, burst_bytes=1 << 18)
        with HostWorld(links, HOSTS) as world:
            yield world


def test_hosts_are_found_and_their_links_measured(shaped: HostWorld):
    for seconds in (4.0, 16.0, 64.0):  # how links are shared comes last, and a busy machine is slow
        found = shaped.results(measured, seconds)[0]
        if found.shared:
            break
    assert found.hosts == ((0, 2), (1, 3), (4,))
    assert len(set(found.names)) == 3
    assert all(link.message_us.value > 0 for link in found.links if link.source != link.target)
    for link in found.links:
        if link.source == link.target:
            assert link.gbit_s.value > 10 * RATE * 1e-9
        else:
            assert holds(link.gbit_s, RATE * PAYLOAD * 1e-9)
    assert found.gbit_s(2, 2) is None
    ways = {(shared.source, shared.targets) for shared in found.shared}
    assert set() < ways <= {(0, (1, 1)), (0, (1, 2)), (1, (0, 0)), (1, (2, 0)), (2, (0, 1))}
    # All share alike. One alone, of few samples, may catch a sender that waited for its CPU.
    assert median(shared.share.value for shared in found.shared) == pytest.approx(0.5, abs=0.15)


def test_what_was_saved_serves_until_a_link_changes(shaped: HostWorld, tmp_path):
    first, files = shaped.results(from_cache, str(tmp_path))[0]
    assert (first.basis, files) == ("measured", 1)
    # A busy machine may have a round look like other links; then these are saved.
    measured = first
    for _ in range(5):
        found = shaped.results(from_cache, str(tmp_path))
        if found[0][0].basis == "saved":
            break
        measured = found[0][0]
    assert [links.basis for links, _ in found] == ["saved"] * len(HOSTS)
    assert all(links == found[0][0] for links, _ in found)
    assert found[0][0].links == measured.links
    assert shaped.results(from_cache, str(tmp_path), True)[0][0].basis == "measured"
    shaped.links.shape(RATE / 4, host=1)
    try:
        changed, files = shaped.results(from_cache, str(tmp_path))[0]
    finally:
        shaped.links.shape(RATE, host=1)
    assert (changed.basis, files) == ("measured", 1)
    (back,) = [link.gbit_s for link in changed.links if (link.source, link.target) == (1, 0)]
    assert holds(back, RATE / 4 * PAYLOAD * 1e-9)
