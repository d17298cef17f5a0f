"""Part ``patterns``: each fixed pattern, ADAPTIVE from its first call on, and torch's all_reduce."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from tests.support.worlds import HostWorld

from . import calls, ranks
from .calls import ADAPTIVE, BF16, FIXED, PLAIN, PLAIN_AGAIN
from .rows import Case, Rows
from .worlds import in_worlds, meeting

CALLS = 100
CALLS_BF16 = 30
FEW = 3
"""Rounds of all fixed patterns, to find the best one."""
PLAIN_S = 15.0
"""What plain calls may take in all: they are made in as many of the rounds as this allows."""
SLICE_S = 60.0
"""How long ranks may run before they say something."""


def cases(quick: bool) -> Iterator[Case]:
    """Sizes and links."""
    for hosts in ("a a b b", "a b a b"):
        for mbit_s in (200, 1000):
            for kb in (1024,) if quick else (1024, 4096, 16384):
                yield {"hosts": hosts, "mbit_s": mbit_s, "kb": kb}
        yield {"hosts": hosts, "delay_ms": 10, "kb": 64}
        for kb in (64,) if quick else (64, 16384):
            yield {"hosts": hosts, "kb": kb}


def bf16_cases(quick: bool) -> Iterator[Case]:
    """The one size that is judged."""
    yield {"hosts": "a b a b", "mbit_s": 200, "kb": 1024 if quick else 16384}


def measure(rows: Rows) -> None:
    """Add a row for each case: fixed patterns, then ADAPTIVE from its first call on, beside the best one."""
    for case, world in in_worlds(rows.missing("patterns", cases(rows.quick))):
        links = world.results(calls.make)[0]
        fixed = [pattern.value for pattern in FIXED]
        few = timed(world, alternating([*fixed, PLAIN], 2 if rows.quick else FEW), case)
        best = min(fixed, key=lambda name: median(few[name]))
        schedule = with_plain([ADAPTIVE, best], 10 if rows.quick else CALLS, median(few[PLAIN]))
        times = timed(world, schedule, case)
        rows.add(
            "patterns", case, links=links, best=best, few_s=few, times_s=times, **world.results(calls.told)[0]
        )


def measure_bf16(rows: Rows) -> None:
    """Add a row for each case: of plain calls beside ADAPTIVE that may send bfloat16."""
    for case, world in in_worlds(rows.missing("bf16", bf16_cases(rows.quick))):
        links = world.results(calls.make)[0]
        few = timed(world, [[PLAIN]] * 2, case)
        schedule = with_plain([BF16], 10 if rows.quick else CALLS_BF16, median(few[PLAIN]))
        rows.add("bf16", case, links=links, times_s=timed(world, schedule, case))


def alternating(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Rounds of all names, every other one backwards: none always comes after the same one."""
    return [list(names) if number % 2 == 0 else list(reversed(names)) for number in range(rounds)]


def with_plain(names: Sequence[str], rounds: int, plain_s: float) -> list[list[str]]:
    """Alternating rounds of names, with two plain calls in those that :data:`PLAIN_S` has time for.

    Args:
        names: in every round.
        rounds: number.
        plain_s: of a plain call.
    """
    every = max(1, math.ceil(2 * plain_s * rounds / PLAIN_S))
    both = alternating([PLAIN, *names, PLAIN_AGAIN], rounds)
    alone = alternating(names, rounds)
    return [both[n] if n % every == every - 1 else alone[n] for n in range(rounds)]


def timed(world: HostWorld, schedule: Sequence[Sequence[str]], case: Case) -> ranks.Times:
    """Seconds of each call, by name."""
    found: ranks.Times = {}
    begin, count = 0, 1
    while begin < len(schedule):
        some = schedule[begin : begin + count]
        with meeting(world.size) as path:
            by_rank = world.results(ranks.rounds, some, int(case["kb"]) * 256, path)
        times = ranks.seconds(by_rank, some)
        for name, values in times.items():
            found.setdefault(name, []).extend(values)
        begin += len(some)
        spent = sum(sum(values) for values in times.values()) / len(some)
        count = max(1, int(SLICE_S / (2 * spent)))
    return found
