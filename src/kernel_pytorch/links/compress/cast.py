"""Numbers as 16-bit floats."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .wire import from_bytes, to_bytes

logger = logging.getLogger(__name__)


class Cast:
    """Each number as the nearest one of a smaller type. Infinities and NaN stay what they are.

    Finite numbers beyond the type become infinite, as in torch: a loss scaler looks for them. The first time,
    a warning is logged.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """``dtype``: that is sent."""
        self.dtype = dtype
        self._told = False

    def nbytes(self, count: int) -> int:
        """Bytes that are sent for ``count`` numbers."""
        return count * self.dtype.itemsize

    def encode(self, tensor: Tensor) -> Tensor:
        """Flat floats as flat uint8, of :meth:`nbytes` elements."""
        small = tensor.to(self.dtype)
        if not self._told and overflows(tensor, small):
            self._told = True
            largest = torch.finfo(self.dtype).max
            logger.warning("numbers beyond %g became infinite as %s", largest, str(self.dtype))
        return to_bytes(small)

    def decode(self, sent: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """``count`` numbers as ``dtype``, from what :meth:`encode` made of them."""
        return from_bytes(sent[: self.nbytes(count)], self.dtype).to(dtype)


def overflows(tensor: Tensor, small: Tensor) -> bool:
    """Whether a finite number of ``tensor`` is infinite in ``small``."""
    infinite = small.isinf()
    return bool(infinite.any()) and bool((infinite & tensor.isfinite()).any())
