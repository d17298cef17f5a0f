"""The interface between a pool and its strategy, and the free lists that most strategies are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import UntypedStorage


class Arena(NamedTuple):
    """Which memory is interchangeable: what is free in one arena never serves a request in another."""

    device: torch.device
    stream: torch.cuda.Stream | None = None
    """The CUDA stream that was current: it orders the uses of the memory."""
    node: int | None = None
    """The NUMA node of host memory, where that matters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Describes the memory of one lent buffer, without keeping it alive."""

    owner: Strategy | None
    """The strategy that takes it back; None if it is freed on return."""
    arena: Arena
    nbytes: int
    """Bytes occupied, at least those asked for."""
    offset: int = 0
    """Bytes from the start of its storage."""
    hit: bool = False
    """Whether it was free memory of the pool, not newly allocated."""


Taken = tuple[Block, UntypedStorage]


@dataclass(kw_only=True)
class Budget:
    """What the strategies of one pool hold in all."""

    max_bytes: int | None
    held_bytes: int = 0
    """Free memory, and slabs, which count in full."""
    evictions: int = 0


class Strategy(ABC):
    """Keeps returned memory for one pool, which calls it with its lock held."""

    name: str
    budget: Budget
    arguments: tuple[Any, ...] = ()
    """Arguments of the constructor: copying or unpickling calls it with them, and attaches to no pool."""

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
    def take(self, nbytes: int, arena: Arena) -> Taken:
        """Memory for ``nbytes > 0``, free or newly allocated, no longer counted as free."""

    @abstractmethod
    def give(self, block: Block, storage: UntypedStorage) -> None:
        """Take a block back for reuse."""

    def forget(self, block: Block) -> None:  # noqa: B027  (a free list holds nothing of what it lent)
        """Note that the buffer on ``block`` was dropped; views may still use its memory."""

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
        """Further entries of the pool's statistics."""
        return {}

    def make_room(self, nbytes: int) -> bool:
        """Evict until ``nbytes`` more may be held; False, with nothing evicted, if that is impossible."""
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
        """New memory. If the device is out of memory, evict all that is free and try once more."""
        try:
            return new_storage(nbytes, device)
        except torch.OutOfMemoryError:
            if not self.idle_bytes:
                raise
        while self.evict():
            self.budget.evictions += 1
        return new_storage(nbytes, device)


class FreeListStrategy(Strategy):
    """Whole allocations, in free lists by size and arena. The last one returned is used first."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, Arena], deque[tuple[int, UntypedStorage]]] = {}
        self._clock = count()
        self._cached_bytes = 0

    @abstractmethod
    def size_of(self, nbytes: int) -> int:
        """Bytes to allocate for a request of ``nbytes``."""

    @property
    def cached_bytes(self) -> int:
        return self._cached_bytes

    def take(self, nbytes: int, arena: Arena) -> Taken:
        size = self.size_of(nbytes)
        hit = (size, arena) in self._free
        storage = self._pop((size, arena), newest=True) if hit else self.allocate(size, arena.device)
        return Block(owner=self, arena=arena, nbytes=size, hit=hit), storage

    def give(self, block: Block, storage: UntypedStorage) -> None:
        if self.make_room(block.nbytes):
            free = self._free.setdefault((block.nbytes, block.arena), deque())
            free.append((next(self._clock), storage))
            self._count(block.nbytes)

    def evict(self) -> bool:
        oldest = min(self._free, key=lambda key: self._free[key][0][0], default=None)
        if oldest is not None:
            self._pop(oldest, newest=False)
        return oldest is not None

    def _pop(self, key: tuple[int, Arena], *, newest: bool) -> UntypedStorage:
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
