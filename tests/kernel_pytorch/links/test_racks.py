from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_links import exactly, made_up

from kernel_pytorch.links.facts import Figure, HostLink, MeasuredLinks, RankPair
from kernel_pytorch.links.racks import racks_of


def alone(count: int):
    """Hosts of one rank each."""
    return tuple((rank,) for rank in range(count))


def by_rack(rack_of: list[int], inside: float, between: float) -> MeasuredLinks:
    pairs = [(a, b) for a in range(len(rack_of)) for b in range(len(rack_of)) if a != b]
    rates = {(a, b): inside if rack_of[a] == rack_of[b] else between for a, b in pairs}
    return made_up(alone(len(rack_of)), rates)


def as_racks(rack_of: list[int]) -> set[tuple[int, ...]]:
    return {tuple(i for i, r in enumerate(rack_of) if r == rack) for rack in rack_of}


@given(st.lists(st.integers(0, 3), max_size=10), st.floats(1.6, 100))
def test_racks_of_two_hosts_or_more_are_found(rack_of: list[int], factor: float):
    found = racks_of(by_rack(rack_of, 10.0, 10.0 / factor))
    racks = as_racks(rack_of)
    assert set(found) == (racks if sum(len(rack) > 1 for rack in racks) > 1 else set())
    assert racks_of(by_rack(rack_of, 10.0, 8.0)) == ()


@given(st.permutations([0, 0, 0, 1, 1, 2]))
def test_the_clearest_of_two_levels_is_taken(rack_of: list[int]):
    """Rack 2 is near rack 1: both are one place, ten times as far from rack 0."""
    links = by_rack(rack_of, 10.0, 5.0)
    far = tuple(
        replace(link, gbit_s=exactly(0.5))
        if 0 in (rack_of[link.source], rack_of[link.target]) and rack_of[link.source] != rack_of[link.target]
        else link
        for link in links.links
    )
    assert set(racks_of(replace(links, links=far))) == as_racks([min(rack, 1) for rack in rack_of])


def test_a_slow_host_is_no_rack():
    assert racks_of(by_rack([0, 0, 0, 1], 10.0, 1.0)) == ()


def test_a_slow_pair_is_no_rack():
    links = by_rack([0, 0, 0, 0], 10.0, 1.0)
    slow = replace(links.links[0], gbit_s=exactly(1.0))
    assert racks_of(replace(links, links=(slow, *links.links[1:]))) == ()


def test_hosts_in_a_chain_are_no_rack():
    """0 and 2 are near 1, and not near each other."""
    links = by_rack([0, 0, 0, 1, 1], 10.0, 1.0)
    far = replace(
        links,
        links=tuple(
            replace(link, gbit_s=exactly(1.0)) if {link.source, link.target} == {0, 2} else link
            for link in links.links
        ),
    )
    assert racks_of(links) == ((0, 1, 2), (3, 4))
    assert racks_of(far) == ()


def test_a_link_that_was_not_measured_leaves_all_open():
    links = by_rack([0, 0, 1, 1], 10.0, 1.0)
    assert racks_of(links) == ((0, 1), (2, 3))
    for missing in links.links:
        assert racks_of(replace(links, links=tuple({*links.links} - {missing}))) == ()


def test_intervals_that_meet_are_not_clear():
    links = by_rack([0, 0, 1, 1], 10.0, 1.0)
    wide = Figure(value=1.0, low=0.5, high=9.0, samples=3)
    unclear = tuple(
        HostLink(source=link.source, target=link.target, gbit_s=wide) if link.gbit_s.value == 1.0 else link
        for link in links.links
    )
    assert racks_of(replace(links, links=unclear)) == ()


@pytest.mark.parametrize(("near", "racks"), [(20.0, ((0, 2), (1, 3))), (90.0, ())])
def test_where_rates_are_alike_round_trips_tell(near: float, racks):
    trips = tuple(
        RankPair(a=a, b=b, round_trip_us=exactly(near if a % 2 == b % 2 else 100.0))
        for a, b in combinations(range(4), 2)
    )
    assert racks_of(replace(by_rack([0] * 4, 10.0, 10.0), pairs=trips)) == racks
