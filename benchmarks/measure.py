"""Seconds and bytes: interleaved timing with an interval, and peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from .registry import Options

MIN_PAIRS = 3
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median time of one call over that of another, from interleaved pairs."""

    first_s: float
    """Median seconds of the numerator."""
    second_s: float
    """Median seconds of the denominator."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    pairs: int
    """Pairs measured."""

    @property
    def value(self) -> float:
        """The ratio of medians."""
        return self.first_s / self.second_s


def progress(message: str) -> None:
    """Tell the person who waits, on stderr."""
    print(message, file=sys.stderr, flush=True)


def interleave(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int,
    max_seconds: float,
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Seconds of each call of both, after one warm-up call each.

    The order alternates (first, second), (second, first), ... so that neither always runs in the wake of
    the other, and slow drift of the machine cancels. Stops early after ``max_seconds``, but not before
    3 pairs (or ``pairs``, if that is less).
    """

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    least = min(pairs, MIN_PAIRS)
    pair_seconds = seconds(first) + seconds(second)
    expected = max(least * pair_seconds, min(pairs * pair_seconds, max_seconds))
    progress(f"  up to {pairs} pairs, about {expected:.0f} s")
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for pair in range(pairs):
        if pair >= least and time.perf_counter() - start > max_seconds:
            break
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            times[which].append(seconds((first, second)[which]))
    return times


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


def median_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """The ratio of medians with its 95 % percentile-bootstrap interval.

    Pairs are resampled whole (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13), since
    what disturbs the machine disturbs both calls of a pair. The resampling is seeded.
    """
    times = np.array([first, second])
    pairs = times.shape[1]
    index = np.random.default_rng(0).integers(pairs, size=(RESAMPLES, pairs))
    numerator, denominator = np.median(times[:, index], axis=-1)
    low, high = np.quantile(numerator / denominator, (0.025, 0.975))
    first_s, second_s = np.median(times, axis=1)
    return Ratio(
        first_s=float(first_s), second_s=float(second_s), low=float(low), high=float(high), pairs=pairs
    )


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    options: Options,
    *,
    work: tuple[float, float] = (1.0, 1.0),
) -> Ratio:
    """The time of ``first`` over that of ``second``, each divided by its share of ``work``."""
    times = interleave(
        first, second, pairs=options.pairs, max_seconds=options.max_seconds, device=options.device
    )
    return median_ratio([t / work[0] for t in times[0]], [t / work[1] for t in times[1]])


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``run`` holds at once beyond what was allocated before, its result included.

    On CUDA by the caching allocator's own count. On CPU by replaying the profiler's memory events: every
    allocation and release that goes through PyTorch's CPU allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak
