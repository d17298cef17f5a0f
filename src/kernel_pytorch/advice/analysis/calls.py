"""Seconds of a call and their noise. Imports torch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..facts import Fact
from ..sample import Sample

CALLS = 22
"""Samples: 11 of the odd calls, 11 of the even ones."""
WARM_UPS = 5
"""Calls before; one where it lasts long. The fastest tells how many calls a sample has."""
SAMPLE_S = 0.002
"""A sample has as many calls as last this long."""
LIMIT_S = 4.0
"""What all samples may take together; a slower model gets fewer, at least 2."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Seconds of a call, in the order measured, each the mean of the calls of a sample."""

    seconds: tuple[float, ...]

    @property
    def call(self) -> Fact:
        """The median."""
        return Fact(value=statistics.median(self.seconds), basis="measured")

    @property
    def noise(self) -> Fact:
        """The ratio of the medians of the even and the odd calls less 1, absolute."""
        even, odd = self.seconds[::2], self.seconds[1::2]
        ratio = statistics.median(even) / statistics.median(odd)
        why = "" if len(self.seconds) >= CALLS else f"of {len(self.seconds)} calls"
        return Fact(value=abs(ratio - 1), basis="measured", why=why)


def time_calls(
    run: Callable[[Sample], object],
    sample: Sample,
    *,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    limit_s: float = LIMIT_S,
) -> Calls:
    """Time calls, after warming up; inputs are cloned outside the clock.

    Args:
        synchronize: waits for the device.
    """

    def seconds(repeats: int) -> float:
        inputs = sample.clone()
        synchronize()
        start = clock()
        for _ in range(repeats):
            run(inputs)
        synchronize()
        return (clock() - start) / repeats

    begin = clock()
    once = seconds(1)
    for _ in range(WARM_UPS - 1):
        if clock() - begin < limit_s / CALLS:
            once = min(once, seconds(1))
    repeats = max(1, math.ceil(SAMPLE_S / max(once, 1e-7)))
    begin, times = clock(), [seconds(repeats), seconds(repeats)]
    while len(times) < CALLS and clock() - begin < limit_s * (1 - 2 / CALLS):
        times += [seconds(repeats), seconds(repeats)]
    return Calls(seconds=tuple(times))


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits for a device."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)
