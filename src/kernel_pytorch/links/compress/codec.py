"""The formats that numbers can be sent in, each by itself, so that any part of a tensor can travel alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..methods import CompressionMethod
from .blockwise import Blockwise
from .cast import Cast


class Codec(Protocol):
    """A format on the wire. The same bytes are decoded to the same numbers on every rank."""

    def nbytes(self, count: int) -> int:
        """Bytes that are sent for ``count`` numbers."""

    def encode(self, tensor: Tensor) -> Tensor:
        """Flat floats as flat uint8, of :meth:`nbytes` elements."""

    def decode(self, sent: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """``count`` numbers as ``dtype``, from what :meth:`encode` made of them."""


def codec_for(method: CompressionMethod, seed: int = 0) -> Cast | Blockwise:
    """The codec of FP16, BF16 or QUANTIZED_8BIT.

    Args:
        method: one of these.
        seed: of stochastic rounding; another one on each rank.

    Raises:
        ValueError: another method.
    """
    if method is CompressionMethod.QUANTIZED_8BIT:
        return Blockwise(seed)
    dtypes = {CompressionMethod.FP16: torch.float16, CompressionMethod.BF16: torch.bfloat16}
    if method not in dtypes:
        raise ValueError(f"method must be fp16, bf16 or quantized_8bit, got {method.value}")
    return Cast(dtypes[method])
