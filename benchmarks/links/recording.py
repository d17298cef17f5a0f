"""Part ``cost``: what recording a call costs, and how many calls a step of a small LongNet makes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from tests.support.worlds import World
from torch.distributed import ProcessGroup

from kernel_pytorch.links.profile.recorder import Recorder

from . import ranks, training
from .patterns import alternating
from .rows import Case, Rows

BLOCK = 500
"""Calls that are timed together."""
BLOCKS = 20


def cases(quick: bool) -> Iterator[Case]:
    """One."""
    del quick
    yield {"model": "small LongNet"}


def measure(rows: Rows) -> None:
    """Add a row for each case."""
    for case in rows.missing("cost", cases(rows.quick)):
        blocks, steps = (2, 5) if rows.quick else (BLOCKS, 50)
        with World(1) as world:
            world.results(ranks.plainly)
            times = world.results(calls_s, blocks)[0]
        with World(4) as world:
            world.results(ranks.plainly)
            recorded = world.results(recorded_steps, steps)[0]
            plain = world.results(training.train, "plain", 0, steps)[0]
        rows.add("cost", case, calls_s=times, calls_a_step=recorded / steps, step_s=plain["step_s"])


def calls_s(group: ProcessGroup, blocks: int) -> dict[str, list[float]]:
    """Seconds of a call of one rank alone, which sends nothing, by block: plain, and recorded to a file."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(folder)
        groups: dict[str, Any] = {"plain": group, "recorded": recorder.wrap(group), "plain again": group}
        number = torch.zeros(1)
        times: dict[str, list[float]] = {name: [] for name in groups}
        for names in alternating(list(groups), blocks):
            for name in names:
                begin = time.perf_counter()
                for _ in range(BLOCK):
                    dist.all_reduce(number, group=groups[name])
                times[name].append((time.perf_counter() - begin) / BLOCK)
        recorder.close()
    return times


def recorded_steps(group: ProcessGroup, steps: int) -> int:
    """Calls of some steps of the model, its beginning included."""
    recorder = Recorder()
    training.train(recorder.wrap(group), "plain", 0, steps)
    return len(recorder.calls)
