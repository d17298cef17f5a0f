"""How far a tensor is from another. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

_CHUNK = 1 << 22
"""Elements that are compared at once: float64 copies of large outputs would need their memory."""


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Detached and strided, of any layout; quantised values as floats."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.is_nested:
        return (
            tensor.values() if tensor.layout is torch.jagged else torch.nested.to_padded_tensor(tensor, 0.0)
        )
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def same_non_finite(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether NaN and infinities of either sign are in the same places."""
    return all(
        bool((a.isnan() == b.isnan()).all())
        and bool((a.isposinf() == b.isposinf()).all())
        and bool((a.isneginf() == b.isneginf()).all())
        for a, b in _chunks(first, second)
    )


def norms(tensor: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Euclidean norms of the difference and of the reference, where both are finite."""
    largest = max((_largest(r) for _, r in _chunks(tensor, reference)), default=0.0)
    scale = largest or 1.0  # squares of float64 values near its greatest would overflow
    difference = size = 0.0
    for t, r in _chunks(tensor, reference):
        both = t.isfinite() & r.isfinite()
        t, r = t[both] / scale, r[both] / scale
        difference += float((t - r).square().sum())
        size += float(r.square().sum())
    return scale * math.sqrt(difference), scale * math.sqrt(size)


def _largest(values: torch.Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _chunks(first: torch.Tensor, second: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Equal pieces of both in float64; complex ones as pairs of floats."""
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in (first, second)]
    for a, b in zip(*(torch.split(part.reshape(-1), _CHUNK) for part in parts), strict=True):
        yield a.double(), b.to(a.device).double()
