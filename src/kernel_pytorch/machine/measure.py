"""What a device really reaches: matrix products and copies. Imports torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .facts import DeviceInfo
from .measured import MeasuredPeaks
from .torch_devices import torch_device

_MATRIX = {"cpu": 2048, "gpu": 8192}
_COPY_BYTES = {"cpu": 512 << 20, "gpu": 2 << 30}


def measure_peaks(device: DeviceInfo, *, seconds: float = 0.5) -> MeasuredPeaks:
    """Measure one device.

    Args:
        seconds: for each figure, after one run to warm up.

    Raises:
        ValueError: torch does not see the device, or too little of its memory is free.
    """
    try:
        return _measure_peaks(device, torch_device(device), seconds)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{device.label}: too little free memory to measure: {error}") from error


def _measure_peaks(device: DeviceInfo, target: torch.device, seconds: float) -> MeasuredPeaks:
    size, count = _MATRIX[device.kind], _COPY_BYTES[device.kind]
    if device.kind == "cpu" and device.memory_bytes is not None:
        count = min(count, device.memory_bytes // 8)  # two such, and this process may be granted little
    names = ("float32", "bfloat16") if device.kind == "cpu" else ("float32", "tf32", "bfloat16", "float16")
    flops = {name: _matmul_flops(name, size, target, seconds) for name in names}
    source = torch.ones(count, dtype=torch.uint8, device=target)
    copy = torch.empty_like(source)
    memory_gb_s = 2 * count / _median_s(lambda: copy.copy_(source), target, seconds) / 1e9
    peaks = device.peaks
    known = peaks.flops if peaks else {}
    return MeasuredPeaks(
        device_id=device.device_id,
        flops=flops,
        memory_gb_s=memory_gb_s,
        matrix_size=size,
        copy_bytes=count,
        threads=torch.get_num_threads() if device.kind == "cpu" else None,
        flops_share={name: flops[name] / known[name] for name in flops if name in known},
        memory_share=memory_gb_s / peaks.memory_gb_s if peaks else None,
    )


def _matmul_flops(name: str, size: int, target: torch.device, seconds: float) -> float:
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    a, b = (torch.randn(size, size, device=target).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with _products(rounded=name == "tf32"):
        return float(2 * size**3 / _median_s(lambda: torch.mm(a, b, out=out), target, seconds))


@contextmanager
def _products(*, rounded: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _median_s(run: Callable[[], object], target: torch.device, seconds: float) -> float:
    def wait() -> None:
        if target.type != "cpu":
            torch.accelerator.synchronize(target)

    run()
    wait()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < seconds:
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
