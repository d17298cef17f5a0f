"""A pool of buffers."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from .strategies import (
    AdaptiveStrategy,
    BucketedStrategy,
    FragmentAwareStrategy,
    NUMAStrategy,
    SimpleStrategy,
    Strategy,
)
from .strategies.base import Arena, Block, Budget, new_storage

STRATEGIES: dict[str, type[Strategy]] = {
    "simple": SimpleStrategy,
    "bucketed": BucketedStrategy,
    "fragment_aware": FragmentAwareStrategy,
    "numa": NUMAStrategy,
    "adaptive": AdaptiveStrategy,
}

# Bytes that returned memory is filled with: NaN in each floating-point format that has one.
_DEBUG_BYTES = {torch.bool: 0x01, torch.float8_e4m3fnuz: 0x80, torch.float8_e5m2fnuz: 0x80}
_DEBUG_BYTE_FLOATING, _DEBUG_BYTE = 0xFF, 0xA5


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lease:
    """A lent buffer."""

    alive: weakref.ref[Tensor]
    """Kept for its callback."""
    block: Block
    nbytes: int
    """Bytes asked for."""
    storage_bytes: int
    storage_pointer: int


class UnifiedMemoryPool:
    """Lends uninitialised buffers, and lends their memory again once they are returned.

    A lent buffer belongs to the caller alone. One that is dropped instead of returned is freed like any
    tensor. After its return neither a buffer nor a view of it may be used: its memory may be lent again.
    (``debug`` fills it, and a backward pass that had saved the buffer raises.)

    On CUDA, memory is lent again only on the stream that was current when it was allocated: before returning
    a buffer, make that stream wait for other streams that used it.

    All methods may be called from any thread, but not from ``__del__`` or a signal handler, which may
    interrupt one of them: there a buffer can only be dropped.

    Args:
        strategy: ``"simple"``, ``"bucketed"``, ``"fragment_aware"``, ``"numa"``, ``"adaptive"``, or a
            :class:`Strategy` object, which serves this pool alone.
        max_bytes: bound on free memory plus slabs, in bytes; None for no bound. The least recently returned
            free memory is released first. A larger request is served, but its memory is not kept.
        debug: fill returned memory, floating-point with NaN, other with 0xA5 (bool: True).

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """

    def __init__(
        self, strategy: str | Strategy = "adaptive", max_bytes: int | None = None, debug: bool = False
    ) -> None:
        if max_bytes is not None:
            if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
                raise TypeError(f"max_bytes must be int or None, got {max_bytes!r}")
            if max_bytes < 0:
                raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        if isinstance(strategy, str):
            if strategy not in STRATEGIES:
                raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
            strategy = STRATEGIES[strategy]()
        if not isinstance(strategy, Strategy):
            raise TypeError(f"strategy must be a name or a Strategy, got {strategy!r}")
        self._budget = Budget(max_bytes=max_bytes)
        strategy.attach(self._budget)
        self._strategy = strategy
        self._debug = debug
        self._lock = threading.Lock()
        self._leases: dict[int, _Lease] = {}  # by id of the tensor
        self._dropped: deque[int] = deque()
        self._hits = self._misses = self._forgotten = 0

    def get_buffer(
        self, shape: int | Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A contiguous, uninitialised tensor that requires no gradient.

        Args:
            shape: its size in elements.
            dtype: any that is not quantised.
            device: a CPU or a CUDA device.

        Raises:
            ValueError: if a size is negative or the device is of another kind.
            TypeError: if ``shape`` or ``dtype`` is of another type.
        """
        sizes, nbytes = _check_shape(shape, dtype)
        with torch.inference_mode(False), self._lock:
            arena = _current_arena(device)
            # Not a view of a slab: those would share one version counter.
            tensor = torch.empty(0, dtype=dtype, device=arena.device)
            self._settle()  # once it exists: a dropped buffer may have had its id
            block, storage = self._take(nbytes, arena)
            tensor.set_(storage, block.offset // dtype.itemsize, sizes, ())  # contiguous
            if nbytes:
                self._hits += block.hit
                self._misses += not block.hit
            self._leases[id(tensor)] = _Lease(
                alive=weakref.ref(tensor, self._when_dropped(id(tensor))),
                block=block,
                nbytes=nbytes,
                storage_bytes=storage.nbytes(),
                storage_pointer=storage.data_ptr(),
            )
        return tensor

    def return_buffer(self, tensor: Tensor) -> None:
        """Take back a buffer: the tensor that :meth:`get_buffer` returned, not a view of it.

        Raises:
            ValueError: if this pool did not lend it, or has it back already, or it takes part in autograd, or
                its memory was replaced. A buffer that is refused stays lent.
            TypeError: if it is not a tensor.
        """
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensor must be a torch.Tensor, got {type(tensor).__name__}")
        with torch.inference_mode(False), self._lock:
            self._settle()
            lease = self._leases.get(id(tensor))
            if lease is None:
                raise ValueError(
                    f"this tensor of shape {tuple(tensor.shape)} is not lent by this pool: "
                    "it never was, or it has been returned already"
                )
            if tensor.requires_grad or tensor.grad_fn is not None:
                raise ValueError(
                    "a buffer that takes part in autograd cannot be returned: "
                    f"requires_grad={tensor.requires_grad}, grad_fn={tensor.grad_fn}"
                )
            storage, block = tensor.untyped_storage(), lease.block
            memory = storage.data_ptr(), storage.nbytes()
            if memory != (lease.storage_pointer, lease.storage_bytes):
                raise ValueError(
                    "a buffer whose memory was replaced cannot be returned: "
                    f"lent {lease.storage_bytes} bytes at {lease.storage_pointer:#x}, "
                    f"got {memory[1]} at {memory[0]:#x}"
                )
            del self._leases[id(tensor)]
            torch.autograd.graph.increment_version(tensor)
            if self._debug and lease.nbytes:
                _fill(storage, block, tensor.dtype)
            if block.owner is not None:
                self._strategy.give(block, storage)

    @contextmanager
    def lease(
        self, shape: int | Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """:meth:`get_buffer` as a context manager: returned at the end, also after an exception."""
        tensor = self.get_buffer(shape, dtype, device)
        try:
            yield tensor
        finally:
            self.return_buffer(tensor)

    allocate = get_buffer
    deallocate = return_buffer

    def __reduce__(self) -> tuple[type[UnifiedMemoryPool], tuple[object, ...]]:
        """A copy or an unpickled pool is an empty one of the same kind, so that modules can be copied."""
        return type(self), (copy(self._strategy), self._budget.max_bytes, self._debug)

    def get_stats(self) -> dict[str, Any]:
        """Counts since the pool was made, and bytes now.

        ``strategy``, ``max_bytes``: as given. ``buffers_lent``, ``bytes_lent``: lent now, bytes as requested.
        ``bytes_cached``: free, held for reuse. ``bytes_held``: free memory and whole slabs, bounded by
        ``max_bytes``. ``hits``, ``misses``: requests served from free memory, and by a new allocation; empty
        buffers are neither. ``evictions``: allocations released to make room. ``forgotten``: buffers dropped
        instead of returned. The adaptive strategy adds ``chosen``, the NUMA one ``numa_nodes``.
        """
        with self._lock:
            self._settle()
            return {
                "strategy": self._strategy.name,
                "max_bytes": self._budget.max_bytes,
                "buffers_lent": len(self._leases),
                "bytes_lent": sum(lease.nbytes for lease in self._leases.values()),
                "bytes_cached": self._strategy.cached_bytes,
                "bytes_held": self._budget.held_bytes,
                "hits": self._hits,
                "misses": self._misses,
                "evictions": self._budget.evictions,
                "forgotten": self._forgotten,
                **self._strategy.details(),
            }

    def clear(self) -> None:
        """Release all free memory. Lent buffers stay lent, and slabs with a lent region are kept."""
        with self._lock:
            self._settle()
            self._strategy.clear()

    def _take(self, nbytes: int, arena: Arena) -> tuple[Block, UntypedStorage]:
        if nbytes == 0:
            return Block(owner=None, arena=arena, nbytes=0), new_storage(0, arena.device)
        return self._strategy.take(nbytes, arena)

    def _when_dropped(self, key: int) -> Callable[[object], None]:
        """The callback for the end of the tensor with this id. It runs in any thread, lock held or not."""
        pool, dropped = weakref.ref(self), self._dropped

        def note(_: object) -> None:
            dropped.append(key)
            alive = pool()
            if alive is not None and alive._lock.acquire(blocking=False):
                try:
                    alive._settle()
                finally:
                    alive._lock.release()

        return note

    def _settle(self) -> None:
        """Account for dropped buffers. The lock is held."""
        while self._dropped:
            lease = self._leases.pop(self._dropped.popleft(), None)
            if lease is None:  # dropped after its return
                continue
            self._forgotten += 1
            if lease.block.owner is not None:
                self._strategy.forget(lease.block)


def _check_shape(shape: int | Sequence[int], dtype: torch.dtype) -> tuple[torch.Size, int]:
    """The shape, and the bytes it takes."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    try:
        sizes = torch.Size((shape,) if isinstance(shape, int) else shape)
    except TypeError as error:
        raise TypeError(f"shape must be int or a sequence of int, got {shape!r}") from error
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must not hold negative sizes, got {tuple(sizes)}")
    return sizes, math.prod(sizes) * dtype.itemsize


def _current_arena(device: torch.device | str) -> Arena:
    device = torch.device(device)
    if device.type == "cpu":
        return Arena(torch.device("cpu"))
    if device.type != "cuda":
        raise ValueError(f"device must be a CPU or a CUDA device, got {device}")
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return Arena(device, torch.cuda.current_stream(device))


def _fill(storage: UntypedStorage, block: Block, dtype: torch.dtype) -> None:
    floating = dtype.is_floating_point or dtype.is_complex
    byte = _DEBUG_BYTES.get(dtype, _DEBUG_BYTE_FLOATING if floating else _DEBUG_BYTE)
    with torch.cuda.stream(block.arena.stream):
        memory = torch.empty(0, dtype=torch.uint8, device=storage.device)
        memory.set_(storage, block.offset, (block.nbytes,), ()).fill_(byte)
