"""One tensor, compressed by itself: bytes to send, and what the receiver must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..methods import CompressionMethod
from .cast import overflows
from .codec import codec_for
from .low_rank import orthonormal, saves, start
from .topk import largest, pack, unpack
from .wire import from_bytes, sum_dtype, to_bytes

_OPTIONS: dict[CompressionMethod, dict[str, Any]] = {
    CompressionMethod.QUANTIZED_8BIT: {"seed": 0},
    CompressionMethod.TOPK: {"ratio": 0.01},
    CompressionMethod.POWERSGD: {"rank": 4, "seed": 0},
}


def compress(tensor: Tensor, method: CompressionMethod, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """A tensor of any shape as flat bytes.

    * NONE: any dtype, exact.
    * FP16, BF16: each number as the nearest one of that type.
    * QUANTIZED_8BIT: 8 bits for each number and a scale for 256, rounded at random: the expected value is the
      number. ``seed=0``: another one for each tensor, or their errors add up.
    * TOPK: the numbers of largest magnitude, exact; the others become 0. ``ratio=0.01``: share of them.
    * POWERSGD: a matrix (the first dimension by all others) as the product of two thin ones, exact where its
      rank is not higher. ``rank=4``, ``seed=0``. What it would not halve is sent as it is.
    * ADAPTIVE: BF16 where that is smaller, else NONE.

    NaN and infinities never become finite numbers: FP16, BF16 and the numbers that TOPK sends keep them, the
    256 numbers around one become NaN with QUANTIZED_8BIT, its column with POWERSGD.

    Args:
        tensor: dense, on any device but meta.
        method: what to do.
        options: of the method, as above.

    Returns:
        The payload, uint8 ``[nbytes]``, and the metadata: numbers, strings and lists for :func:`decompress`.

    Raises:
        TypeError: no tensor, one that is sparse or on meta, one of no floats with a method that rounds, or an
            option is none of the method's.
        ValueError: an option has no such value.
        OverflowError: a finite number is beyond the type that it would be sent as.
    """
    method = CompressionMethod(method)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise TypeError(f"tensor must be dense and hold numbers, got {tensor.layout} on {tensor.device}")
    chosen = _checked(method, options)
    floats = tensor.is_floating_point()
    if method is CompressionMethod.ADAPTIVE:
        smaller = floats and tensor.dtype.itemsize > torch.bfloat16.itemsize
        method = CompressionMethod.BF16 if smaller else CompressionMethod.NONE
    elif method is not CompressionMethod.NONE and not floats:
        raise TypeError(f"{method.value} takes a tensor of floats, got {tensor.dtype}: use none")
    if method is CompressionMethod.POWERSGD and not (
        tensor.ndim >= 2 and tensor.numel() and saves(tensor.shape, chosen["rank"])
    ):
        method = CompressionMethod.NONE
    flat = tensor.detach().reshape(-1)
    metadata: dict[str, Any] = {
        "method": method.value,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }
    if method is CompressionMethod.NONE:
        return to_bytes(flat).clone(), metadata
    if method is CompressionMethod.TOPK:
        indices = largest(flat, chosen["ratio"])
        return pack(flat, indices), {**metadata, "count": len(indices)}
    if method is CompressionMethod.POWERSGD:
        matrix = flat.view(len(tensor), -1).to(sum_dtype(tensor.dtype))
        p = orthonormal(matrix @ start(matrix, chosen["rank"], (chosen["seed"],)))
        q = matrix.T @ p
        return to_bytes(torch.cat([p.flatten(), q.flatten()])), {**metadata, "rank": chosen["rank"]}
    sent_as = {CompressionMethod.FP16: torch.float16, CompressionMethod.BF16: torch.bfloat16}
    dtype = sent_as.get(method, torch.float32)
    if overflows(flat, dtype):
        greatest = float(flat[flat.isfinite()].abs().max())
        raise OverflowError(
            f"{method.value} holds numbers up to {torch.finfo(dtype).max:g}, got {greatest:g}: use "
            + ("bf16" if method is CompressionMethod.FP16 else "none")
        )
    return codec_for(method, chosen.get("seed", 0)).encode(flat), metadata


def decompress(payload: Tensor, metadata: Mapping[str, Any]) -> Tensor:
    """The tensor, of the dtype and shape that it had, contiguous, on the device of the payload.

    Args:
        payload, metadata: of :func:`compress`.

    Raises:
        ValueError: the payload has not the length that the metadata tell.
    """
    method, shape = CompressionMethod(metadata["method"]), torch.Size(metadata["shape"])
    dtype, count = getattr(torch, metadata["dtype"]), shape.numel()
    assert isinstance(dtype, torch.dtype)
    if method is CompressionMethod.NONE:
        _check_length(payload, count * dtype.itemsize)
        return from_bytes(payload, dtype).clone().view(shape)
    if method is CompressionMethod.TOPK:
        _check_length(payload, metadata["count"] * (dtype.itemsize + (4 if count <= 2**31 else 8)))
        indices, values = unpack(payload, metadata["count"], count, dtype)
        flat = torch.zeros(count, dtype=dtype, device=payload.device)
        flat[indices] = values
        return flat.view(shape)
    if method is CompressionMethod.POWERSGD:
        n, m, rank = shape[0], shape[1:].numel(), metadata["rank"]
        _check_length(payload, (n + m) * rank * sum_dtype(dtype).itemsize)
        p, q = torch.split(from_bytes(payload, sum_dtype(dtype)), [n * rank, m * rank])
        return torch.mm(p.view(n, rank), q.view(m, rank).T).to(dtype).view(shape)
    codec = codec_for(method)
    _check_length(payload, codec.nbytes(count))
    return codec.decode(payload, count, dtype).view(shape)


def _checked(method: CompressionMethod, options: Mapping[str, Any]) -> dict[str, Any]:
    known = _OPTIONS.get(method, {})
    if unknown := options.keys() - known.keys():
        raise TypeError(
            f"{method.value} has no option {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}"
        )
    chosen = {**known, **options}
    if not 0 < chosen.get("ratio", 1) <= 1:
        raise ValueError(f"ratio must be above 0 and at most 1, got {chosen['ratio']}")
    if chosen.get("rank", 1) < 1:
        raise ValueError(f"rank must be at least 1, got {chosen['rank']}")
    return chosen


def _check_length(payload: Tensor, expected: int) -> None:
    if payload.dtype is not torch.uint8 or payload.shape != (expected,):
        raise ValueError(
            f"payload must be {expected} bytes by the metadata, got {payload.dtype} {list(payload.shape)}"
        )
