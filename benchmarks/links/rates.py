"""Part ``rates``: what the links are measured to carry, and how long that takes four ranks."""

from __future__ import annotations

from collections.abc import Iterator

from . import calls
from .rows import Case, Rows
from .worlds import in_worlds

REPEATS = 3


def cases(quick: bool) -> Iterator[Case]:
    """Rates, several times each."""
    for repeat in range(1 if quick else REPEATS):
        for mbit_s in (50, 200, 1000):
            yield {"hosts": "a b a b", "mbit_s": mbit_s, "repeat": repeat}


def measure(rows: Rows) -> None:
    """Add a row for each case."""
    for case, world in in_worlds(rows.missing("rates", cases(rows.quick))):
        rows.add("rates", case, **world.results(calls.links)[0])
