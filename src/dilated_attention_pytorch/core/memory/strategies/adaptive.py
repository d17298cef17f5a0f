"""A strategy that switches between the others by the sizes requested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import UntypedStorage

from .base import Arena, Block, Budget, Strategy, Taken
from .bucketed import BucketedStrategy, size_class
from .fragment_aware import SLAB_BYTES, FragmentAwareStrategy
from .simple import SimpleStrategy

ENOUGH = 0.75
"""Hit rate, measured or expected, from which on a strategy is good enough."""


class AdaptiveStrategy(Strategy):
    """One of simple, bucketed and fragment-aware at a time, reconsidered after every ``window`` requests.

    It starts as simple. If at least 3/4 of a window's requests were hits, nothing changes. Otherwise the
    sizes requested in that window decide:

    * at least 3/4 of them repeat an earlier one exactly: simple, which wastes nothing;
    * else, at least 3/4 repeat an earlier one's size class: bucketed;
    * else fragment-aware, to which sizes do not matter.

    On a switch the old strategy's free memory is released at once, lent memory when it is returned.

    Args:
        window: requests between two choices, at least 1.
        slab_bytes: see :class:`FragmentAwareStrategy`.
    """

    name = "adaptive"

    def __init__(self, window: int = 64, slab_bytes: int = SLAB_BYTES) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.arguments = window, slab_bytes
        self.window = window
        self._simple, self._bucketed = SimpleStrategy(), BucketedStrategy()
        self._fragment_aware = FragmentAwareStrategy(slab_bytes)
        self._chosen: Strategy = self._simple
        self._sizes: list[int] = []
        self._hits = 0

    def attach(self, budget: Budget) -> None:
        super().attach(budget)
        for strategy in (self._simple, self._bucketed, self._fragment_aware):
            strategy.attach(budget)

    @property
    def cached_bytes(self) -> int:
        return self._chosen.cached_bytes

    @property
    def idle_bytes(self) -> int:
        return self._chosen.idle_bytes

    def take(self, nbytes: int, arena: Arena) -> Taken:
        if len(self._sizes) == self.window:
            self._choose()
        block, storage = self._chosen.take(nbytes, arena)
        self._sizes.append(nbytes)
        self._hits += block.hit
        return block, storage

    def _choose(self) -> None:
        before = self._chosen
        if self._hits < ENOUGH * self.window:
            if _repeats(self._sizes) >= ENOUGH:
                self._chosen = self._simple
            elif _repeats(map(size_class, self._sizes)) >= ENOUGH:
                self._chosen = self._bucketed
            else:
                self._chosen = self._fragment_aware
        if self._chosen is not before:
            before.clear()
        self._sizes, self._hits = [], 0

    def give(self, block: Block, storage: UntypedStorage) -> None:
        assert block.owner is not None
        block.owner.give(block, storage)
        if block.owner is not self._chosen:
            block.owner.clear()

    def forget(self, block: Block) -> None:
        assert block.owner is not None
        block.owner.forget(block)

    def evict(self) -> bool:
        return self._chosen.evict()

    def details(self) -> dict[str, Any]:
        return {"chosen": self._chosen.name}


def _repeats(values: Iterable[int]) -> float:
    """The share of the values that equal an earlier one: 1/2 for [8, 8, 8, 16, 32, 16]."""
    values = list(values)
    return 1 - len(set(values)) / len(values)
