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


def check(tensor: Tensor) -> None:
    """Refuse what has no elements in memory.

    Raises:
        TypeError: ``tensor`` is no dense tensor.
        ValueError: ``tensor`` is a meta tensor.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = tensor.dtype if tensor.is_quantized else tensor.layout
        raise TypeError(f"tensor must be dense, got {kind}: use tensor.to_dense()")
    if tensor.is_meta:
        raise ValueError("tensor must have data, got a meta tensor")


def check_op(tensor: Tensor, op: str) -> None:
    """Refuse what has no result.

    The sum of booleans is whether any is true, their product whether all are, as in torch.

    Raises:
        TypeError: the numbers of ``tensor`` cannot be reduced, or not by ``op``.
        ValueError: unknown ``op``.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if tensor.dtype not in NUMBERS:
        raise TypeError(f"tensor has {tensor.dtype}, which cannot be reduced")
    if op == "mean" and not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"op mean needs floating-point numbers, got {tensor.dtype}: sum, then divide")
    if op in ("max", "min") and tensor.is_complex():
        raise TypeError(f"op {op} needs numbers that have an order, got {tensor.dtype}")


def check_writable(tensor: Tensor) -> None:
    """Refuse a view in which a place in memory is several elements: there is no way to write a result there.

    Raises:
        ValueError: it may be one.
    """
    reach = 0
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        if size > 1:
            if stride <= reach:
                raise ValueError(
                    f"tensor must not have elements that share memory, got strides {tensor.stride()} "
                    f"of shape {tuple(tensor.shape)}: use tensor.contiguous()"
                )
            reach += stride * (size - 1)


def flat(tensor: Tensor) -> Tensor:
    """The elements as a contiguous vector in the order of the indices, in the same memory if possible."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)


def write_back(values: Tensor, tensor: Tensor) -> None:
    """Put the elements of a vector back where :func:`flat` took them from."""
    if (
        values.data_ptr() != tensor.data_ptr()
        or not tensor.is_contiguous()
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        tensor.detach().copy_(values.view(tensor.shape))
