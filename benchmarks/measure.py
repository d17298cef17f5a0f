"""What benchmarks share: progress on stderr, medians, two calls compared as the options say."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from kernel_pytorch.advice.prove.ratio import Ratio, median_ratio
from kernel_pytorch.advice.prove.timing import MIN_PAIRS, interleave

from .registry import Options


def progress(message: str) -> None:
    """Tell the person who waits, on stderr."""
    print(message, file=sys.stderr, flush=True)


def medians(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, max_seconds: float, device: torch.device
) -> dict[str, float]:
    """Median seconds of each call, one after the other in every round, after a warm-up of all.

    On CUDA by the device's own events. Stops early after ``max_seconds``, but not before 3 rounds.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_PAIRS and time.perf_counter() - start > max_seconds:
            break
        for name, call in calls.items():
            times[name].append(_device_seconds(call) if device.type == "cuda" else _seconds(call))
    return {name: float(np.median(some)) for name, some in times.items()}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _device_seconds(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    options: Options,
    *,
    work: tuple[float, float] = (1.0, 1.0),
) -> Ratio:
    """The time of ``first`` over that of ``second``, each divided by its share of ``work``."""
    times = interleave(
        first,
        second,
        pairs=options.pairs,
        max_seconds=options.max_seconds,
        device=options.device,
        tell=progress,
    )
    return median_ratio([t / work[0] for t in times[0]], [t / work[1] for t in times[1]])
