"""Exact sizes."""

from __future__ import annotations

from .base import FreeListStrategy


class SimpleStrategy(FreeListStrategy):
    """A buffer serves again a request of exactly as many bytes: nothing is wasted, nothing else is served."""

    name = "simple"

    def size_of(self, nbytes: int) -> int:
        return nbytes
