"""Part ``urgent``: a small operation of high priority behind a big one, in the queue of the scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from kernel_pytorch.links.measure import measure_links
from kernel_pytorch.links.schedule.queue import CollectiveQueue

from .patterns import alternating
from .ranks import STATE, Meeting
from .rows import Case, Rows
from .worlds import in_worlds, meeting

ROUNDS = 15
LATER_S = 0.1
"""After how long the small operation is submitted."""
PRIORITY = {"urgent": 10.0, "first in, first out": 1.0, "first in, first out again": 1.0}


def cases(quick: bool) -> Iterator[Case]:
    """The one that is judged."""
    yield {"hosts": "a b a b", "mbit_s": 200, "kb": 4096 if quick else 16384}


def measure(rows: Rows) -> None:
    """Add a row for each case."""
    for case, world in in_worlds(rows.missing("urgent", cases(rows.quick))):
        chunk = world.results(make_queue)[0]
        schedule = [
            name for some in alternating(list(PRIORITY), 3 if rows.quick else ROUNDS) for name in some
        ]
        small_s: dict[str, list[float]] = {name: [] for name in PRIORITY}
        all_s: dict[str, list[float]] = {name: [] for name in PRIORITY}
        for name in schedule:
            with meeting(world.size) as path:
                ranks = world.results(one_behind_other, int(case["kb"]) * 256, PRIORITY[name], path)
            begun, submitted, small, done = ([each[n] for each in ranks] for n in range(4))
            small_s[name].append(max(small) - max(submitted))
            all_s[name].append(max(done) - max(begun))
        world.results(close_queue)
        chunks = int(case["kb"]) * 1024 / chunk
        chunk_s = median(all_s["first in, first out"]) / chunks
        rows.add("urgent", case, chunk_bytes=chunk, chunk_s=chunk_s, small_s=small_s, all_s=all_s)


def make_queue(group: ProcessGroup) -> int:
    """Measure the links and make the queue; bytes of its chunks."""
    STATE["queue"] = CollectiveQueue(group, links=measure_links(group))
    return int(STATE["queue"].chunk_bytes)


def one_behind_other(group: ProcessGroup, numbers: int, priority: float, path: str) -> Sequence[float]:
    """When the big operation was submitted, when the small one; when that was done, and when both."""
    queue: Any = STATE["queue"]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    big, small = torch.full((numbers,), rank + 1.0), torch.full((1 << 14,), rank + 1.0)
    Meeting(path, rank).wait()
    begun = time.perf_counter()
    first = queue.submit("all_reduce", big, name="big")
    time.sleep(LATER_S)
    submitted = time.perf_counter()
    queue.submit("all_reduce", small, name="small", priority=priority).wait()
    done = time.perf_counter()
    first.wait()
    total = size * (size + 1) / 2
    if not (big == total).all() or not (small == total).all():
        raise ValueError(f"a sum is wrong on rank {rank}")
    return begun, submitted, done, time.perf_counter()


def close_queue(group: ProcessGroup) -> None:
    """End its threads."""
    del group
    STATE.pop("queue").shutdown()
