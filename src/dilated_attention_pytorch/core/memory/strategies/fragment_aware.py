"""Slabs, divided into regions of the sizes requested."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from torch import UntypedStorage

from .base import Arena, Block, Strategy, Taken

ALIGNMENT = 512
"""Bytes; what CUDA's caching allocator gives."""
SLAB_BYTES = 64 << 20


@dataclass(kw_only=True, eq=False)
class Slab:
    """One allocation, of which regions are lent."""

    arena: Arena
    storage: UntypedStorage
    free: list[tuple[int, int]] = field(default_factory=list)
    """Offsets (start, stop) of the free regions, in order, no two of them adjacent."""
    lent: int = 0
    """Regions whose buffers are alive."""
    lost_bytes: int = 0
    """Bytes of dropped buffers, of which views may remain."""

    @property
    def free_bytes(self) -> int:
        return sum(stop - start for start, stop in self.free)

    def release(self, start: int, stop: int) -> None:
        """Add a free region, joined with free neighbours."""
        insort(self.free, (start, stop))
        merged: list[tuple[int, int]] = []
        for region in self.free:
            if merged and merged[-1][1] == region[0]:
                region = (merged.pop()[0], region[1])
            merged.append(region)
        self.free = merged


@dataclass(frozen=True, kw_only=True, eq=False)
class Region(Block):
    """A part of a slab."""

    slab: Slab


class FragmentAwareStrategy(Strategy):
    """Requests of any sizes share slabs: each gets the smallest free region that holds it.

    A returned region joins its free neighbours. A slab counts in full as held; it can be evicted when no
    region of it is lent. The region of a dropped buffer is not used again, since views of it may remain: its
    slab is released when no other region of it is lent. Less than 512 bytes of a region are wasted.

    Args:
        slab_bytes: the size of a slab, unless a request needs more or the pool's ``max_bytes`` allow less.
    """

    name = "fragment_aware"

    def __init__(self, slab_bytes: int = SLAB_BYTES) -> None:
        if slab_bytes < ALIGNMENT or slab_bytes % ALIGNMENT:
            raise ValueError(f"slab_bytes must be a positive multiple of {ALIGNMENT}, got {slab_bytes}")
        self.arguments = (slab_bytes,)
        self.slab_bytes = slab_bytes
        self._slabs: list[Slab] = []  # the one returned to last at the end

    @property
    def cached_bytes(self) -> int:
        return sum(slab.free_bytes for slab in self._slabs)

    @property
    def idle_bytes(self) -> int:
        return sum(slab.storage.nbytes() for slab in self._slabs if not slab.lent)

    def take(self, nbytes: int, arena: Arena) -> Taken:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        fits = [
            (stop - start, index, start, stop)
            for index, slab in enumerate(self._slabs)
            if slab.arena == arena
            for start, stop in slab.free
            if stop - start >= size
        ]
        if fits:
            _, index, start, stop = min(fits)
            slab = self._slabs[index]
            slab.free.remove((start, stop))
        else:
            grown = self._grow(size, arena)
            if grown is None:
                block = Block(owner=None, arena=arena, nbytes=nbytes)
                return block, self.allocate(nbytes, arena.device)
            slab, start, stop = grown, 0, grown.storage.nbytes()
        if start + size < stop:
            insort(slab.free, (start + size, stop))
        slab.lent += 1
        region = Region(owner=self, arena=arena, nbytes=size, offset=start, hit=bool(fits), slab=slab)
        return region, slab.storage

    def _grow(self, size: int, arena: Arena) -> Slab | None:
        """A new slab for ``size`` bytes, or None if the pool may not hold it."""
        most = self.budget.max_bytes
        usual = self.slab_bytes if most is None else min(self.slab_bytes, most // ALIGNMENT * ALIGNMENT)
        for slab_bytes in (max(size, usual), size):
            if self.make_room(slab_bytes):
                slab = Slab(arena=arena, storage=self.allocate(slab_bytes, arena.device))
                self._slabs.append(slab)
                self.budget.held_bytes += slab_bytes
                return slab
        return None

    def give(self, block: Block, storage: UntypedStorage) -> None:
        slab = self._slab_of(block)
        slab.release(block.offset, block.offset + block.nbytes)
        self._slabs.remove(slab)
        self._slabs.append(slab)
        self._leave(slab)

    def forget(self, block: Block) -> None:
        slab = self._slab_of(block)
        slab.lost_bytes += block.nbytes
        self._leave(slab)

    def evict(self) -> bool:
        idle = next((slab for slab in self._slabs if not slab.lent), None)
        if idle is not None:
            self._drop(idle)
        return idle is not None

    def _leave(self, slab: Slab) -> None:
        slab.lent -= 1
        if not slab.lent and slab.lost_bytes:
            self._drop(slab)

    def _drop(self, slab: Slab) -> None:
        self._slabs.remove(slab)
        self.budget.held_bytes -= slab.storage.nbytes()

    @staticmethod
    def _slab_of(block: Block) -> Slab:
        assert isinstance(block, Region)
        return block.slab
