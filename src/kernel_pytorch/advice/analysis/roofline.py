"""The peaks of this device and the time that a call needs at least by them. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ...machine.measure import Rates, measure_rates
from ..facts import Fact, Roofline, unknown

FIGURE_S = 0.3
"""Seconds for each figure: those of a CPU take about a second together."""
_COPY_BYTES = {"cpu": (8 << 20, 64 << 20), "gpu": (256 << 20,)}
_DTYPES = {"cpu": ("float32", "bfloat16"), "gpu": ("float32", "tf32", "bfloat16", "float16")}
_MORE = ("float16", "float64")
_measured: dict[tuple[str, int, tuple[str, ...]], Rates] = {}


def roofline(device: torch.device, dtypes: Sequence[str] = (), *, again: bool = False) -> Roofline:
    """The peaks of a device with the threads of now, measured once in a process.

    The fastest of equal runs counts, so that other processes disturb little.

    Args:
        dtypes: of the model, to measure beside the usual ones.
        again: whether to measure a second time, and keep the higher of both.
    """
    kind = "cpu" if device.type == "cpu" else "gpu"
    wanted = _DTYPES[kind] + tuple(d for d in dict.fromkeys(dtypes) if d in _MORE and d not in _DTYPES[kind])
    key = (str(device), torch.get_num_threads(), wanted)
    if key not in _measured or again:
        try:
            rates = measure_rates(
                device, wanted, copy_bytes=_COPY_BYTES[kind], figure_s=FIGURE_S, summary=min
            )
        except torch.OutOfMemoryError as error:
            why = f"too little free memory to measure: {' '.join(str(error).split())}"
            return Roofline(flops={}, memory_gb_s=None, unmeasured=dict.fromkeys((*wanted, "copy"), why))
        _measured[key] = _higher(rates, _measured.get(key, rates))
    rates = _measured[key]
    return Roofline(flops=dict(rates.flops), memory_gb_s=rates.memory_gb_s, unmeasured=dict(rates.unmeasured))


def bound(peaks: Roofline, flops: Mapping[str, int], held_bytes: int, cache_bytes: int) -> Fact:
    """Seconds below which a call cannot be: its products at the peak, or its memory read once.

    Args:
        flops: by dtype, without those that a mask hides.
        held_bytes: of parameters, inputs and outputs.
        cache_bytes: of the last cache, from which a call may read what the one before left there.
    """
    seconds = 0.0
    for dtype, count in flops.items():
        rates = [peaks.flops[name] for name in _rates_of(dtype) if name in peaks.flops]
        if not rates:
            return unknown(f"the peak of {dtype} products: {peaks.unmeasured.get(dtype, 'not measured')}")
        seconds += count / max(rates)
    moving = 0.0
    if peaks.memory_gb_s is not None:
        moving = max(0, held_bytes - cache_bytes) / (peaks.memory_gb_s * 1e9)
    if max(seconds, moving) == 0:
        return unknown("no matrix products, and what it holds fits the cache")
    why = "by the products" if seconds >= moving else "by the memory that a call reads and writes once"
    return Fact(value=max(seconds, moving), basis="predicted", why=why)


def _higher(a: Rates, b: Rates) -> Rates:
    flops = {name: max(r.flops.get(name, 0.0) for r in (a, b)) for name in {**a.flops, **b.flops}}
    copied = max((r.memory_gb_s for r in (a, b) if r.memory_gb_s is not None), default=None)
    unmeasured = {name: why for name, why in a.unmeasured.items() if name in b.unmeasured}
    return replace(a, flops=flops, memory_gb_s=copied, unmeasured=unmeasured)


def _rates_of(dtype: str) -> tuple[str, ...]:
    return ("float32", "tf32") if dtype == "float32" else (dtype,)
