from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_up_links import exactly, made_up

from kernel_pytorch.links.facts import Figure, HostLink, RankPair
from kernel_pytorch.links.saved import agrees, key_of, links_folder, load, save

LINKS = made_up(((0, 2), (1, 3)), 0.2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_what_is_saved_is_loaded():
    path = save(LINKS, "k", now=5.0)
    assert path.parent == links_folder()
    assert [file.name for file in path.parent.iterdir()] == ["k.json"]
    assert load("k") == replace(LINKS, basis="saved")
    save(made_up(((0,), (1,)), 1.0), "k", now=6.0)
    assert load("k").size == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "kernel-pytorch links"}', b"\xff"])
def test_a_file_that_is_none_counts_as_nothing(content):
    path = save(LINKS, "k", now=5.0)
    path.write_bytes(content)
    assert load("k") is None
    assert load("other") is None


def test_a_later_version_is_not_read():
    path = save(LINKS, "k", now=5.0)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    assert load("k") is None


def test_the_key_is_of_the_hosts_by_rank():
    assert key_of(["a", "b", "a"]) == key_of(["a", "b", "a"]) != key_of(["a", "a", "b"])


def with_rate(value: float, spread: float = 0.0):
    figure = Figure(value=value, low=value - spread, high=value + spread, samples=3)
    return replace(LINKS, links=(HostLink(source=0, target=1, gbit_s=figure), LINKS.links[1]))


@pytest.mark.parametrize(
    ("value", "spread", "same"),
    [(0.2, 0.0, True), (0.18, 0.0, True), (0.1, 0.0, False), (0.1, 0.08, True), (0.4, 0.0, False)],
)
def test_a_quick_measurement_confirms_or_not(value, spread, same):
    assert agrees(LINKS, with_rate(value, spread)) is same


@pytest.mark.parametrize(("value", "same"), [(13.0, True), (7.0, True), (3.0, False), (25.0, False)])
def test_inside_a_host_a_factor_of_two_is_no_other_link(value, same):
    before, now = (
        replace(LINKS, links=(*LINKS.links, HostLink(source=0, target=0, gbit_s=exactly(rate))))
        for rate in (10.0, value)
    )
    assert agrees(before, now) is same


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (100, 900, True),
        (100, 1_200, False),
        (20_000, 29_000, True),
        (20_000, 31_000, False),
        (20_000, 300, False),
    ],
)
def test_round_trips_between_hosts_count(before, now, same):
    def with_trip(microseconds, inside=50.0):
        trips = {(0, 1): microseconds, (0, 2): inside}
        pairs = [RankPair(a=a, b=b, round_trip_us=exactly(trip)) for (a, b), trip in trips.items()]
        return replace(LINKS, pairs=tuple(pairs))

    assert agrees(with_trip(before), with_trip(now, inside=40_000.0)) is same
    assert agrees(LINKS, with_trip(now)) is True


def test_other_hosts_confirm_nothing():
    assert not agrees(LINKS, made_up(((0, 1), (2, 3)), 0.2))
    assert not agrees(LINKS, replace(LINKS, links=LINKS.links[:1]))
    unknown = replace(LINKS, links=(HostLink(source=0, target=0, gbit_s=exactly(1.0)),))
    assert not agrees(LINKS, unknown)
