"""Tensors as bytes and back: the messages of all formats are flat tensors of uint8."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(tensor: Tensor) -> Tensor:
    """The elements as uint8, flat; shares memory where ``tensor`` is contiguous."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def from_bytes(sent: Tensor, dtype: torch.dtype) -> Tensor:
    """The elements that :func:`to_bytes` was given, flat; shares memory where that is aligned."""
    aligned = sent.storage_offset() % dtype.itemsize == 0 and sent.is_contiguous()
    return (sent if aligned else sent.clone()).view(dtype)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this type are added in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
