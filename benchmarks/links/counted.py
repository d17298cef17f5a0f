"""Part ``bytes``: what collectives and hooks say they sent, and what the interfaces counted."""

from __future__ import annotations

from collections.abc import Iterator

from . import calls, training
from .rows import Case, Rows
from .worlds import in_worlds

CALLS = 4
FORMATS = ("none", "fp16", "bf16", "quantized_8bit")
HOOKS = (*FORMATS, "topk", "powersgd")


def cases(quick: bool) -> Iterator[Case]:
    """Patterns and formats; hooks, which count what they send to all ranks, with a host for each of them."""
    sizes = (1024,) if quick else (1024, 16384)
    for hosts in ("a a b b", "a b a b"):
        for kb in sizes:
            for pattern in calls.FIXED:
                for name in FORMATS:
                    yield {"hosts": hosts, "kb": kb, "pattern": pattern.value, "format": name}
    for kb in sizes:
        for name in HOOKS:
            yield {"hosts": "a b c d", "kb": kb, "pattern": "hook of DDP", "format": name}


def measure(rows: Rows) -> None:
    """Add a row for each case. Making a group sends too, but nothing like what is counted."""
    for case, world in in_worlds(rows.missing("bytes", cases(rows.quick))):
        numbers = int(case["kb"]) * 256
        hook = case["hosts"] == "a b c d"
        if hook:
            world.results(training.make_hook, numbers, case["format"])
        before = world.links.traffic()
        if hook:
            counted = world.results(training.run_hook, CALLS)
        else:
            counted = world.results(calls.sent, numbers, case["pattern"], case["format"], CALLS)
        after = world.links.traffic()
        interfaces = sum(b.sent_data - a.sent_data for a, b in zip(before, after, strict=True))
        rows.add("bytes", case, counted=sum(counted), interfaces=interfaces)
