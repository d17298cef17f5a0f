"""Measuring a device with matrix products and copies. Imports torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from .facts import DeviceInfo
from .measured import MeasuredPeaks
from .torch_devices import torch_device

_DTYPES = {"cpu": ("float32", "bfloat16"), "gpu": ("float32", "tf32", "bfloat16", "float16")}
_MATRIX_SIZES = {"cpu": (128, 256, 512, 1024, 2048), "gpu": (1024, 2048, 4096, 8192)}
_COPY_MIB = {"cpu": (8, 64, 512), "gpu": (256, 2048)}
_RUNS = 3
_FIRST_RUNS = 6
"""At most, to choose the size."""
_FIGURE_S = 1.0
"""Approximate time for each figure. A 2048 x 2048 product takes minutes on a CPU without bfloat16."""


class TooSlowError(Exception):
    """Even the smallest size takes longer than a figure may."""


def measure_peaks(device: DeviceInfo) -> MeasuredPeaks:
    """Measure one device, with the largest products and copies for which a figure takes about a second.

    Raises:
        ValueError: torch does not see the device, or it has too little free memory.
    """
    try:
        return _measure_peaks(device, torch_device(device))
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{device.label}: too little free memory to measure: {error}") from error


def _measure_peaks(device: DeviceInfo, target: torch.device) -> MeasuredPeaks:
    counts = [mib << 20 for mib in _COPY_MIB[device.kind]]
    if device.kind == "cpu" and device.memory_bytes is not None:
        largest = device.memory_bytes // 8  # source and copy together need twice this
        counts = [count for count in counts if count <= largest] or [largest]
    rates = measure_rates(target, _DTYPES[device.kind], copy_bytes=counts)
    peaks = device.peaks
    known = peaks.flops if peaks else {}
    return MeasuredPeaks(
        device_id=device.device_id,
        flops=rates.flops,
        memory_gb_s=rates.memory_gb_s,
        matrix_sizes=rates.matrix_sizes,
        copy_bytes=rates.copy_bytes,
        threads=torch.get_num_threads() if device.kind == "cpu" else None,
        flops_share={name: rates.flops[name] / known[name] for name in rates.flops if name in known},
        memory_share=rates.memory_gb_s / peaks.memory_gb_s if peaks and rates.memory_gb_s else None,
        unmeasured=rates.unmeasured,
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of products and copies on a device of torch; the fields are those of :class:`MeasuredPeaks`."""

    flops: dict[str, float]
    matrix_sizes: dict[str, int]
    memory_gb_s: float | None
    copy_bytes: int
    unmeasured: dict[str, str]


def measure_rates(
    target: torch.device,
    dtypes: Sequence[str],
    *,
    copy_bytes: Sequence[int],
    figure_s: float = _FIGURE_S,
    summary: Callable[[Sequence[float]], float] = statistics.median,
) -> Rates:
    """Measure one device of torch, each figure in about ``figure_s`` seconds.

    Args:
        dtypes: names of torch's, and "tf32".
        copy_bytes: sizes to copy, ascending.
        summary: makes one of the seconds of equal runs; ``min`` gives what the device can do though others
            disturb it.

    Raises:
        torch.OutOfMemoryError: there is too little free memory.
    """
    flops: dict[str, float] = {}
    sizes: dict[str, int] = {}
    unmeasured: dict[str, str] = {}
    for name in dtypes:
        make = partial(_product, name, target)
        try:
            sizes[name], seconds = _largest_size(
                make, _MATRIX_SIZES[_kind(target)], 3, target, figure_s, summary
            )
            flops[name] = 2 * sizes[name] ** 3 / seconds
        except TooSlowError as error:
            unmeasured[name] = str(error)
    memory_gb_s, count = None, 0
    try:
        count, seconds = _largest_size(partial(_copy, target), copy_bytes, 1, target, figure_s, summary)
        memory_gb_s = 2 * count / seconds / 1e9
    except TooSlowError as error:
        unmeasured["copy"] = str(error)
    return Rates(
        flops=flops, matrix_sizes=sizes, memory_gb_s=memory_gb_s, copy_bytes=count, unmeasured=unmeasured
    )


def _kind(target: torch.device) -> str:
    return "cpu" if target.type == "cpu" else "gpu"


def _product(name: str, target: torch.device, size: int) -> Callable[[], object]:
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    a, b = (torch.randn(size, size, device=target).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def run() -> None:
        with _matmul_precision(rounded=name == "tf32"):
            torch.mm(a, b, out=out)

    return run


def _copy(target: torch.device, count: int) -> Callable[[], object]:
    source = torch.ones(count, dtype=torch.uint8, device=target)
    copy = torch.empty_like(source)
    return lambda: copy.copy_(source)


@contextmanager
def _matmul_precision(*, rounded: bool) -> Iterator[None]:
    """Allow or forbid rounding the factors of float32 products to TF32 meanwhile."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _largest_size(
    make: Callable[[int], Callable[[], object]],
    sizes: Sequence[int],
    power: int,
    target: torch.device,
    figure_s: float,
    summary: Callable[[Sequence[float]], float],
) -> tuple[int, float]:
    """The largest of ``sizes`` whose runs take about ``figure_s`` together, and the summary of their seconds.

    Args:
        make: returns the function to run for a size.
        sizes: ascending.
        power: the time of a run grows with this power of the size.

    Raises:
        TooSlowError: a run of the smallest size takes longer.
    """

    def seconds_of(run: Callable[[], object]) -> float:
        begin = time.perf_counter()
        run()
        if target.type != "cpu":
            torch.accelerator.synchronize(target)
        return time.perf_counter() - begin

    for number, size in enumerate(sizes):
        run = make(size)
        started, first = time.perf_counter(), [seconds_of(run), seconds_of(run)]
        # The first run also loads the code, and threads that wait for a CPU slow down more.
        while len(first) < _FIRST_RUNS and time.perf_counter() - started < figure_s / 5:
            first.append(seconds_of(run))
        seconds = min(first)
        if number == 0 and seconds > figure_s:
            raise TooSlowError(f"a run of size {size} takes {seconds:.3g} s")
        larger = sizes[number + 1] if number + 1 < len(sizes) else None
        if larger is None or (2 + _RUNS) * seconds * (larger / size) ** power > figure_s:
            break
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _RUNS or time.perf_counter() - started < figure_s / 2:
        times.append(seconds_of(run))
    return size, summary(times)
