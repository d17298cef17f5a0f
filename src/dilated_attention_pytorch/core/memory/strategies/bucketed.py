"""Size classes."""

from __future__ import annotations

from .base import FreeListStrategy

_LEAST_STEP = 64


class BucketedStrategy(FreeListStrategy):
    """Free memory serves any request of its size class: powers of two, with three steps between them.

    Less than a quarter of the request is wasted, or less than 64 bytes if that is more.
    """

    name = "bucketed"

    def size_of(self, nbytes: int) -> int:
        return size_class(nbytes)


def size_class(nbytes: int) -> int:
    """The least of 64, 128, 192, 256, 320, 384, 448, 512, 640, ... that is not below ``nbytes > 0``."""
    power = 1 << (nbytes - 1).bit_length() >> 1
    step = max(power // 4, _LEAST_STEP)
    return -(-nbytes // step) * step
