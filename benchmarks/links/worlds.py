"""Ranks on hosts, as a case wants them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from tests.support.worlds import HostWorld

from . import ranks
from .namespaces import Links
from .rows import Case


@contextmanager
def world_of(hosts: str) -> Iterator[HostWorld]:
    """Ranks on hosts, as in "a b a b"."""
    places = [ord(name) - ord("a") for name in hosts.split()]
    with Links(max(places) + 1) as links, HostWorld(links, places) as world:
        world.results(ranks.plainly)
        yield world


def in_worlds(cases: Iterable[Case]) -> Iterator[tuple[Case, HostWorld]]:
    """Each case with its world, its links shaped. One world serves the cases of the same hosts in a row."""
    for hosts, some in groupby(cases, key=lambda case: str(case["hosts"])):
        with world_of(hosts) as world:
            for case in some:
                rate = case.get("mbit_s")
                world.links.shape(None if rate is None else rate * 1e6)
                world.links.delay(float(case.get("delay_ms", 0.0)) / 1e3)
                yield case, world


@contextmanager
def meeting(size: int) -> Iterator[str]:
    """A file by which ranks start together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "meeting")
        ranks.empty_meeting(path, size)
        yield str(path)
