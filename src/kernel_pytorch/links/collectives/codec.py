"""Formats in which numbers travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Codec(Protocol):
    """A format of float32 numbers that takes a known number of bytes."""

    def encode(self, values: Tensor) -> Tensor:
        """Bytes, uint8 [encoded_bytes(N)], of values, float32 [N]."""

    def decode(self, payload: Tensor, count: int) -> Tensor:
        """Values, float32 [count], of bytes; the same on all ranks."""

    def encoded_bytes(self, count: int) -> int:
        """How many bytes ``count`` values take."""


class Cast:
    """A floating-point dtype of fewer bits, each value rounded to the nearest."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def encode(self, values: Tensor) -> Tensor:
        import torch

        return values.to(self._dtype).view(torch.uint8)

    def decode(self, payload: Tensor, count: int) -> Tensor:
        return payload.view(self._dtype).float()

    def encoded_bytes(self, count: int) -> int:
        return count * self._dtype.itemsize
