"""What one rank of a ring computes: its own keys, then blocks of others', forward and backward.

Letters: b batch, n this rank's rows, h query heads, g key/value heads, d head dimension.

Attention over a block is merged into the accumulators by its log-sum-exp. Every fused backward is fed with
the merged output and lse, so its result is the exact part of the whole (as on one device).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..core.sharding import Chunk
from ..kernels.fused import fused_backward, fused_forward
from ..kernels.problem import Problem, Tile, accumulation_dtype, merge_rows
from ..kernels.sdpa import partial_backward, partial_forward
from .schedule import Block, blocks_between

# Elements of an explicit mask, which only causality against the order of the rows needs.
_MASK_ELEMENTS = 1 << 22

KeyValue = tuple[Tensor, Tensor]

Saved = tuple[Tensor, Tensor, Tensor, Tensor]
"""grad_out, query, out ``[b, n, h, d]`` and lse ``[b, h, n]``, the last two merged."""


class Kernels(Protocol):
    """What a backend computes. Chunks are ``[b, n, h, d]``, a block's rows ``[b, g', rows, d]``."""

    def cast(self, x: Tensor) -> Tensor:
        """``x`` in the dtype that the backend computes with."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        """out and lse ``[b, h, n]`` of a chunk over its own keys, in the accumulation dtype."""

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        problem: Problem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The own keys' part of a chunk's gradients, in the accumulation dtype."""

    def absorb(
        self,
        query: Tensor,
        out: Tensor,
        lse: Tensor,
        block: Block,
        rows_kv: KeyValue,
        padding: Tensor | None,
        part: Part,
        owner: int,
    ) -> None:
        """Merge attention over a block's rows into out ``[b, n, h, d]`` and lse ``[b, n, h]``."""

    def absorb_backward(
        self,
        saved: Saved,
        grad_query: Tensor,
        block: Block,
        rows_kv: KeyValue,
        padding: Tensor | None,
        part: Part,
        owner: int,
    ) -> KeyValue:
        """Add a block's part to grad_query ``[b, n, h, d]``; return the gradients of the block's rows."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's part of a problem.

    Args:
        problem: the call; its padding is this rank's ``[b, n]``.
        chunks: the chunks of each rank.
        rank: which of them are these rows.
        kernels: the backend.
        num_heads, group: query heads, and how many of them share a key/value head.
        order: int64 ``[seq]``, the time of each position, if causality is by another order than that of
            the rows; ``None`` if it is not, or the problem is not causal.
    """

    problem: Problem
    chunks: Sequence[Sequence[Chunk]]
    rank: int
    kernels: Kernels
    num_heads: int
    group: int
    order: Tensor | None = None

    def blocks(self, owner: int, user: int) -> list[Block]:
        """What rank ``user`` needs of rank ``owner``."""
        return blocks_between(
            self.chunks[owner],
            self.chunks[user],
            self.problem.branches,
            num_heads=self.num_heads,
            group=self.group,
            first_head=self.problem.first_head,
            is_causal=self.problem.is_causal and self.order is None,
        )

    def own_chunks(self) -> Iterator[tuple[slice, Problem, Tensor | None]]:
        """Rows of each chunk, its problem, and the order in which to take the rows if not as they are."""
        before = 0
        for start, stop in self.chunks[self.rank]:
            rows = slice(before, before + stop - start)
            before = rows.stop
            padding = None if self.problem.padding is None else self.problem.padding[:, rows]
            problem = replace(self.problem, padding=padding, origin=start)
            if self.order is None:
                yield rows, problem, None
                continue
            by_time = self.order[start:stop].argsort()
            if padding is not None:
                problem = replace(problem, padding=padding[:, by_time])
            yield rows, replace(problem, positions=(start + by_time)[None]), by_time

    def times(self, rank: int) -> Tensor:
        """When each row of a rank was, by ``order``: int64 ``[n]``."""
        assert self.order is not None
        return torch.cat([self.order[start:stop] for start, stop in self.chunks[rank]])


def own_forward(query: Tensor, key: Tensor, value: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    """out ``[b, n, h, d]`` and lse ``[b, n, h]`` over the keys that a rank holds itself."""
    batch, seq, heads, _ = query.shape
    dtype = accumulation_dtype(query)
    out = query.new_empty(query.shape, dtype=dtype)
    lse = query.new_empty(batch, seq, heads, dtype=dtype)
    for rows, problem, by_time in part.own_chunks():
        chunk = [_take(x, rows, by_time) for x in (query, key, value)]
        chunk_out, chunk_lse = part.kernels.forward(chunk[0], chunk[1], chunk[2], _sized(problem, batch))
        _put(out, rows, by_time, chunk_out)
        _put(lse, rows, by_time, chunk_lse.transpose(1, 2))
    for block in part.blocks(part.rank, part.rank):
        rows_kv = rows_of(block, key, value)
        padding = block.keys.ignored_keys(part.problem.padding)
        part.kernels.absorb(query, out, lse, block, rows_kv, padding, part, part.rank)
    return out, lse


def _sized(problem: Problem, batch: int) -> Problem:
    if problem.positions is None:
        return problem
    return replace(problem, positions=problem.positions.expand(batch, -1))


def _take(x: Tensor, rows: slice, by_time: Tensor | None) -> Tensor:
    return x[:, rows] if by_time is None else x[:, rows][:, by_time]


def _put(x: Tensor, rows: slice, by_time: Tensor | None, new: Tensor) -> None:
    if by_time is None:
        x[:, rows] = new
    else:
        x[:, rows][:, by_time] = new


def rows_of(block: Block, key: Tensor, value: Tensor) -> KeyValue:
    """A block's rows ``[b, g', rows, d]`` of the owner's key and value ``[b, n, g, d]``."""
    tile = block.keys
    return tile.rows_for_kernel(key, tile.heads.kv), tile.rows_for_kernel(value, tile.heads.kv)


def own_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, part: Part
) -> list[Tensor]:
    """This rank's own part of the gradients of its query, key and value; ``lse [b, h, n]`` is merged."""
    dtype = accumulation_dtype(query)
    grads = [x.new_empty(x.shape, dtype=dtype) for x in (query, key, value)]
    for rows, problem, by_time in part.own_chunks():
        chunk = [_take(x, rows, by_time) for x in (grad_out, query, key, value, out, lse.transpose(1, 2))]
        go, q, k, v, o, chunk_lse = chunk
        chunk_grads = part.kernels.backward(
            go, q, k, v, o, chunk_lse.transpose(1, 2), _sized(problem, len(query))
        )
        for grad, new in zip(grads, chunk_grads, strict=True):
            _put(grad, rows, by_time, new)
    for block in part.blocks(part.rank, part.rank):
        padding = block.keys.ignored_keys(part.problem.padding)
        saved = (grad_out, query, out, lse)
        rows_kv = rows_of(block, key, value)
        block_grads = part.kernels.absorb_backward(saved, grads[0], block, rows_kv, padding, part, part.rank)
        add_to_owner(block, block_grads, grads[1], grads[2])
    return grads


def add_to_owner(block: Block, block_grads: KeyValue, grad_key: Tensor, grad_value: Tensor) -> None:
    """Add a block's gradients to those of the owner's key and value ``[b, n, g, d]``."""
    tile = block.keys
    for grad, new in zip((grad_key, grad_value), block_grads, strict=True):
        tile.take(grad, tile.heads.kv).add_(tile.rows_from_kernel(new))


class SdpaKernels:
    """PyTorch's fused kernels, tile by tile; see :class:`Kernels`."""

    def cast(self, x: Tensor) -> Tensor:
        # In float32 where a CPU kernel would lose precision in 16 bits.
        return x if x.is_cuda else x.to(accumulation_dtype(x))

    forward = staticmethod(partial_forward)
    backward = staticmethod(partial_backward)

    def absorb(
        self,
        query: Tensor,
        out: Tensor,
        lse: Tensor,
        block: Block,
        rows_kv: KeyValue,
        padding: Tensor | None,
        part: Part,
        owner: int,
    ) -> None:
        for tile, ignored in _asking(block, padding, part, owner, len(query)):
            rows_out, rows_lse = fused_forward(
                tile.rows_for_kernel(query, tile.heads.query),
                *rows_kv,
                is_causal=False,
                scale=part.problem.scale,
                ignored=_for_batch(ignored, query),
            )
            rows_out, rows_lse = (tile.rows_from_kernel(x).to(out.dtype) for x in (rows_out, rows_lse))
            merge_rows(tile, out, lse, rows_out, rows_lse)

    def absorb_backward(
        self,
        saved: Saved,
        grad_query: Tensor,
        block: Block,
        rows_kv: KeyValue,
        padding: Tensor | None,
        part: Part,
        owner: int,
    ) -> KeyValue:
        grad_out, query, out, lse = saved
        lse = lse.transpose(1, 2)
        grads = [torch.zeros_like(x, dtype=grad_query.dtype) for x in rows_kv]
        for tile, ignored in _asking(block, padding, part, owner, len(query)):
            heads = tile.heads.query
            rows_grad_query, *rows_grads = fused_backward(
                tile.rows_for_kernel(grad_out, heads),
                tile.rows_for_kernel(query, heads),
                *rows_kv,
                tile.rows_for_kernel(out, heads),
                tile.take(lse, heads).transpose(2, 3).flatten(0, 1),
                is_causal=False,
                scale=part.problem.scale,
                ignored=_for_batch(ignored, query),
            )
            tile.take(grad_query, heads).add_(tile.rows_from_kernel(rows_grad_query))
            for grad, new in zip(grads, rows_grads, strict=True):
                grad.add_(new)
        return grads[0], grads[1]


def _asking(
    block: Block, padding: Tensor | None, part: Part, owner: int, batch: int
) -> Iterator[tuple[Tile, Tensor | None]]:
    """Tiles of queries, with the keys of the block that they do not see."""
    if part.order is None:
        for tile in block.queries:
            yield tile, padding
        return
    times, key_times = part.times(part.rank), tile_rows(block.keys, part.times(owner))
    for tile in block.queries:
        for some in _split(tile, max(1, _MASK_ELEMENTS // (batch * len(key_times)))):
            hidden = key_times > tile_rows(some, times)[:, None]
            yield some, hidden[None] if padding is None else hidden | padding[:, None]


def tile_rows(tile: Tile, x: Tensor) -> Tensor:
    """The rows of ``x [n]`` that belong to a tile of one segment."""
    return x[tile.start : tile.start + tile.length][tile.offset :: tile.rate]


def _split(tile: Tile, rows: int) -> Iterator[Tile]:
    for start in range(tile.offset, tile.length, rows * tile.rate):
        length = min(tile.length - start, rows * tile.rate)
        yield replace(tile, start=tile.start + start, length=length, offset=0)


def _for_batch(ignored: Tensor | None, query: Tensor) -> Tensor | None:
    return None if ignored is None else ignored.expand(query.shape[0], *ignored.shape[1:])
