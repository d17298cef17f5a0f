"""Measuring a device with matrix products and copies. Imports torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from .facts import DeviceInfo
from .measured import MeasuredPeaks
from .torch_devices import torch_device

_DTYPES = {"cpu": ("float32", "bfloat16"), "gpu": ("float32", "tf32", "bfloat16", "float16")}
_MATRIX_SIZES = {"cpu": (128, 256, 512, 1024, 2048), "gpu": (1024, 2048, 4096, 8192)}
_COPY_MIB = {"cpu": (8, 64, 512), "gpu": (256, 2048)}
_RUNS = 3
_FIGURE_S = 1.0
"""Approximate time for each figure. A 2048 x 2048 product takes minutes on a CPU without bfloat16."""


class TooSlowError(Exception):
    """Even the smallest size takes longer than :data:`_FIGURE_S`."""


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
    flops: dict[str, float] = {}
    sizes: dict[str, int] = {}
    unmeasured: dict[str, str] = {}
    for name in _DTYPES[device.kind]:
        try:
            sizes[name], seconds = _median_s(
                partial(_product, name, target), _MATRIX_SIZES[device.kind], 3, target
            )
            flops[name] = 2 * sizes[name] ** 3 / seconds
        except TooSlowError as error:
            unmeasured[name] = str(error)
    counts = [mib << 20 for mib in _COPY_MIB[device.kind]]
    if device.kind == "cpu" and device.memory_bytes is not None:
        largest = device.memory_bytes // 8  # source and copy together need twice this
        counts = [count for count in counts if count <= largest] or [largest]
    memory_gb_s, count = None, 0
    try:
        count, seconds = _median_s(partial(_copy, target), counts, 1, target)
        memory_gb_s = 2 * count / seconds / 1e9
    except TooSlowError as error:
        unmeasured["copy"] = str(error)
    peaks = device.peaks
    known = peaks.flops if peaks else {}
    return MeasuredPeaks(
        device_id=device.device_id,
        flops=flops,
        memory_gb_s=memory_gb_s,
        matrix_sizes=sizes,
        copy_bytes=count,
        threads=torch.get_num_threads() if device.kind == "cpu" else None,
        flops_share={name: flops[name] / known[name] for name in flops if name in known},
        memory_share=memory_gb_s / peaks.memory_gb_s if peaks and memory_gb_s else None,
        unmeasured=unmeasured,
    )


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


def _median_s(
    make: Callable[[int], Callable[[], object]], sizes: Sequence[int], power: int, target: torch.device
) -> tuple[int, float]:
    """The largest of ``sizes`` whose runs take about :data:`_FIGURE_S` together, and their median in seconds.

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
        seconds = min(seconds_of(run), seconds_of(run))  # the first run also loads the code
        if number == 0 and seconds > _FIGURE_S:
            raise TooSlowError(f"a run of size {size} takes {seconds:.3g} s")
        larger = sizes[number + 1] if number + 1 < len(sizes) else None
        if larger is None or (2 + _RUNS) * seconds * (larger / size) ** power > _FIGURE_S:
            break
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _RUNS or time.perf_counter() - started < _FIGURE_S / 2:
        times.append(seconds_of(run))
    return size, statistics.median(times)
