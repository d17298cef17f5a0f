"""Part ``bytes``: what collectives say they sent, and what the interfaces counted."""

from __future__ import annotations

from collections.abc import Iterator

from . import calls
from .rows import Case, Rows
from .worlds import HOSTS, in_worlds

CALLS = 4
FORMATS = ("none", "fp16", "bf16", "quantized_8bit")


def cases(quick: bool) -> Iterator[Case]:
    """Patterns and formats."""
    for hosts in HOSTS:
        for kb in (1024,) if quick else (1024, 16384):
            for pattern in calls.FIXED:
                for compression in FORMATS:
                    yield {"hosts": hosts, "kb": kb, "pattern": pattern.value, "format": compression}


def measure(rows: Rows) -> None:
    """Add a row for each case."""
    for case, world in in_worlds(rows.missing("bytes", cases(rows.quick))):
        arguments = (int(case["kb"]) * 256, case["pattern"], case["format"], CALLS)
        # Making the group sends a few hundred bytes, and connects.
        before = world.links.traffic()
        counted = world.results(calls.sent, *arguments)
        after = world.links.traffic()
        interfaces = sum(b.sent_data - a.sent_data for a, b in zip(before, after, strict=True))
        rows.add("bytes", case, counted=sum(counted), interfaces=interfaces)
