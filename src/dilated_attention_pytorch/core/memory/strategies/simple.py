"""Exact sizes."""

from __future__ import annotations

from .base import FreeListStrategy


class SimpleStrategy(FreeListStrategy):
    """Free memory serves a request of exactly as many bytes and no other: nothing is wasted."""

    name = "simple"

    def size_of(self, nbytes: int) -> int:
        return nbytes
