"""What a pool asks of a strategy, and the free lists that most of them are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import UntypedStorage


class Place(NamedTuple):
    """Where memory is; what is free in one place never serves another."""

    device: torch.device
    stream: torch.cuda.Stream | None = None
    """The CUDA stream that was current: it orders the uses of the memory."""
    node: int | None = None
    """The NUMA node of host memory, where that matters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """The memory of one lent buffer. It does not keep that memory alive."""

    owner: Strategy | None
    """The strategy that it came from; None if it is not to be kept."""
    place: Place
    nbytes: int
    """Bytes occupied, at least those asked for."""
    offset: int = 0
    """Bytes from the start of its storage."""
    hit: bool = False
    """Whether the pool held this memory already."""


Taken = tuple[Block, UntypedStorage]


@dataclass(kw_only=True)
class Budget:
    """What the strategies of one pool hold together."""

    max_bytes: int | None
    held_bytes: int = 0
    """Free memory, and whole slabs as long as they are kept."""
    evictions: int = 0


class Strategy(ABC):
    """Keeps what was returned, for one pool, which calls it under its lock."""

    name: str
    budget: Budget
    arguments: tuple[Any, ...] = ()
    """What it was made with. A copy, also by pickle, is made anew with it, and serves no pool."""

    def __reduce__(self) -> tuple[type[Strategy], tuple[Any, ...]]:
        return type(self), self.arguments

    def attach(self, budget: Budget) -> None:
        """Start serving a pool.

        Raises:
            ValueError: if it serves one already.
        """
        if hasattr(self, "budget"):
            raise ValueError(f"strategy {self.name!r} serves a pool already; make a new one for each pool")
        self.budget = budget

    @abstractmethod
    def take(self, nbytes: int, place: Place) -> Taken:
        """Memory for ``nbytes > 0``, free or newly allocated, no longer counted as free."""

    @abstractmethod
    def give(self, block: Block, storage: UntypedStorage) -> None:
        """Take a block back, to serve again."""

    def forget(self, block: Block) -> None:  # noqa: B027  (a free list holds nothing of what it lent)
        """The buffer on ``block`` is gone, but something may still use its memory."""

    @property
    @abstractmethod
    def cached_bytes(self) -> int:
        """Free bytes that a request could get."""

    @property
    def idle_bytes(self) -> int:
        """Of the bytes held, those that evictions can release."""
        return self.cached_bytes

    @abstractmethod
    def evict(self) -> bool:
        """Release the least recently returned memory that nobody uses; False if there is none."""

    def clear(self) -> None:
        """Release all memory that nobody uses."""
        while self.evict():
            pass

    def details(self) -> dict[str, Any]:
        """More for the pool's statistics."""
        return {}

    def make_room(self, nbytes: int) -> bool:
        """Evict until ``nbytes`` more may be held; False, with nothing evicted, if that cannot be."""
        budget = self.budget
        if budget.max_bytes is None:
            return True
        if budget.held_bytes - self.idle_bytes + nbytes > budget.max_bytes:
            return False
        while budget.held_bytes + nbytes > budget.max_bytes:
            self.evict()
            budget.evictions += 1
        return True

    def allocate(self, nbytes: int, device: torch.device) -> UntypedStorage:
        """New memory; if there is none, once more after giving up what is free."""
        try:
            return new_storage(nbytes, device)
        except torch.OutOfMemoryError:
            if not self.idle_bytes:
                raise
        while self.evict():
            self.budget.evictions += 1
        return new_storage(nbytes, device)


class FreeListStrategy(Strategy):
    """Whole allocations, in lists of free ones by size and place, the last returned used first."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, Place], deque[tuple[int, UntypedStorage]]] = {}
        self._clock = count()
        self._cached_bytes = 0

    @abstractmethod
    def size_of(self, nbytes: int) -> int:
        """Bytes to allocate for a request of ``nbytes``."""

    @property
    def cached_bytes(self) -> int:
        return self._cached_bytes

    def take(self, nbytes: int, place: Place) -> Taken:
        size = self.size_of(nbytes)
        hit = (size, place) in self._free
        storage = self._pop((size, place), newest=True) if hit else self.allocate(size, place.device)
        return Block(owner=self, place=place, nbytes=size, hit=hit), storage

    def give(self, block: Block, storage: UntypedStorage) -> None:
        if self.make_room(block.nbytes):
            free = self._free.setdefault((block.nbytes, block.place), deque())
            free.append((next(self._clock), storage))
            self._count(block.nbytes)

    def evict(self) -> bool:
        oldest = min(self._free, key=lambda key: self._free[key][0][0], default=None)
        if oldest is not None:
            self._pop(oldest, newest=False)
        return oldest is not None

    def _pop(self, key: tuple[int, Place], *, newest: bool) -> UntypedStorage:
        free = self._free[key]
        _, storage = free.pop() if newest else free.popleft()
        if not free:
            del self._free[key]
        self._count(-key[0])
        return storage

    def _count(self, nbytes: int) -> None:
        self._cached_bytes += nbytes
        self.budget.held_bytes += nbytes


def new_storage(nbytes: int, device: torch.device) -> UntypedStorage:
    """Newly allocated memory."""
    return torch.empty(nbytes, dtype=torch.uint8, device=device).untyped_storage()
