"""What the benchmark's ranks do: calls, timed in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

STATE: dict[str, Any] = {}
"""Of this rank, from one of the functions that it runs to the next."""

Interval = tuple[float, float]
"""Begin and end of a call on a rank, by the clock that all processes of a machine share."""


def plainly(group: ProcessGroup) -> None:
    """Measure as jobs run: the tests' ranks fill memory before it is used."""
    torch.use_deterministic_algorithms(False)


class Meeting:
    """Where processes of one machine wait for each other: a file, so that nothing goes over the links."""

    def __init__(self, path: str, rank: int) -> None:
        """``path`` is a file of :func:`empty_meeting`, of one use."""
        self._arrived = np.memmap(path, dtype=np.int64, mode="r+")
        self._rank = rank

    def wait(self) -> None:
        """Return at about the same moment in all processes.

        Raises:
            TimeoutError: one did not come in a minute.
        """
        self._arrived[self._rank] += 1
        number, deadline = self._arrived[self._rank], time.monotonic() + 60
        while self._arrived.min() < number:
            if time.monotonic() > deadline:
                late = np.flatnonzero(self._arrived < number).tolist()
                raise TimeoutError(f"rank {self._rank} waited a minute for ranks {late}")
            time.sleep(1e-4)


def empty_meeting(path: Path, size: int) -> None:
    """Make the file of a :class:`Meeting` of ``size`` processes."""
    np.zeros(size, dtype=np.int64).tofile(path)


def rounds(
    group: ProcessGroup, schedule: Sequence[Sequence[str]], numbers: int, meeting: str
) -> list[list[Interval]]:
    """Make the calls of each round, those of ``STATE["calls"]``, on a vector.

    Args:
        group: of all ranks.
        schedule: names of calls, by round.
        numbers: of the float32 vector.
        meeting: file of a :class:`Meeting`.

    Returns:
        For each round each call's interval.

    Raises:
        ValueError: a call's result is wrong. Each is looked at once.
    """
    calls: dict[str, Callable[[torch.Tensor], object]] = STATE["calls"]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    whole = (torch.arange(numbers) % 7).float()
    mine, total = whole * (rank + 1), whole * (size * (size + 1) // 2)
    all_there, seen, found = Meeting(meeting, rank), set[str](), []
    for names in schedule:
        times = []
        for name in names:
            vector = mine.clone()
            all_there.wait()
            begin = time.perf_counter()
            calls[name](vector)
            times.append((begin, time.perf_counter()))
            if name not in seen and not torch.equal(vector, total):
                raise ValueError(f"{name}: the result of {numbers} numbers is wrong on rank {rank}")
            seen.add(name)
        found.append(times)
    return found


def seconds(by_rank: Sequence[Sequence[Sequence[Interval]]], schedule: Sequence[Sequence[str]]) -> Times:
    """By name, for each call: from when the last rank begins to when the last one is done.

    Args:
        by_rank: what :func:`rounds` returned on each rank.
        schedule: the same.
    """
    found: Times = {}
    for number, names in enumerate(schedule):
        for place, name in enumerate(names):
            intervals = [ranks[number][place] for ranks in by_rank]
            took = max(end for _, end in intervals) - max(begin for begin, _ in intervals)
            found.setdefault(name, []).append(took)
    return found


Times = dict[str, list[float]]
"""Seconds of each call, by name."""
