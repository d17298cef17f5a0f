"""Tensors as flat vectors. gloo reads and writes outside of tensors that are not contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = frozenset(
    {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    }
)
OPS = ("sum", "mean", "max", "min", "product")


def check(t: Tensor) -> None:
    """Refuse what has no elements in memory.

    Raises:
        TypeError: ``t`` is no dense tensor.
        ValueError: ``t`` is a meta tensor.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"t must be a tensor, got {type(t).__name__}")
    if t.layout is not torch.strided or t.is_quantized:
        raise TypeError(f"t must be dense, got {t.dtype if t.is_quantized else t.layout}: use t.to_dense()")
    if t.is_meta:
        raise ValueError("t must have data, got a meta tensor")


def check_op(t: Tensor, op: str) -> None:
    """Refuse what has no result.

    The sum of booleans is whether any is true, their product whether all are, as in torch.

    Raises:
        TypeError: the numbers of ``t`` cannot be reduced, or not by ``op``.
        ValueError: unknown ``op``.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if t.dtype not in NUMBERS:
        raise TypeError(f"t has {t.dtype}, which cannot be reduced")
    if op == "mean" and not (t.is_floating_point() or t.is_complex()):
        raise TypeError(f"op mean needs floating-point numbers, got {t.dtype}: sum, then divide as you need")
    if op in ("max", "min") and t.is_complex():
        raise TypeError(f"op {op} needs numbers that have an order, got {t.dtype}")


def check_writable(t: Tensor) -> None:
    """Refuse a view in which a place in memory is several elements: there is no way to write a result there.

    Raises:
        ValueError: it may be one.
    """
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                raise ValueError(
                    f"t must not have elements that share memory, got strides {t.stride()} "
                    f"of shape {tuple(t.shape)}: use t.contiguous()"
                )
            reach += stride * (size - 1)


def flat(t: Tensor) -> Tensor:
    """The elements as a contiguous vector, in the order of the indices, in ``t``'s own memory if possible."""
    return t.detach().resolve_conj().resolve_neg().contiguous().view(-1)


def write_back(values: Tensor, t: Tensor) -> None:
    """Put the elements of a vector back where :func:`flat` took them from."""
    if values.data_ptr() != t.data_ptr() or not t.is_contiguous() or t.is_conj() or t.is_neg():
        t.detach().copy_(values.view(t.shape))
