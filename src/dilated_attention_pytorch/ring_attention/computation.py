"""What one rank of a ring computes: over its own keys, then over blocks of others', forward and backward.

Letters: b batch, n this rank's rows, h query heads, g key/value heads, d head dimension.

Attention over a block is merged into the accumulators by its log-sum-exp. Every fused backward takes the
merged output and lse, so its result is exactly the block's part of the gradient (as on one device).
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

# The most elements of an explicit mask. Only causality by another order than that of the rows needs one.
_MASK_ELEMENTS = 1 << 22

KeyValue = tuple[Tensor, Tensor]

Times = tuple[Tensor, Tensor]
"""Times of a tile's queries and of the keys, int64 ``[rows]`` each: no query sees a key of a later time."""

Saved = tuple[Tensor, Tensor, Tensor, Tensor]
"""grad_out, query, out ``[b, n, h, d]`` and lse ``[b, h, n]``, the last two merged."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The keys and values of a block, and the queries of this rank that see them.

    Args:
        key, value: ``[b, g', rows, d]``.
        ignored: keys that nobody sees, bool ``[b, rows]``, or None.
        queries: tiles of this rank's rows; with times if causality is by another order than that of the rows.
            Without times they see all of the keys.
    """

    key: Tensor
    value: Tensor
    ignored: Tensor | None
    queries: Sequence[tuple[Tile, Times | None]]


class Kernels(Protocol):
    """What a backend computes. Tensors of a chunk are ``[b, n, h, d]``, its lse ``[b, h, n]``."""

    def cast(self, x: Tensor) -> Tensor:
        """``x`` in the dtype that the backend computes with."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        """out and lse of a chunk over its own keys, in the accumulation dtype."""

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

    def absorb(self, query: Tensor, out: Tensor, lse: Tensor, offer: Offer, scale: float) -> None:
        """Merge attention over an offer into out and lse."""

    def absorb_backward(self, saved: Saved, grad_query: Tensor, offer: Offer, scale: float) -> KeyValue:
        """Add an offer's part to grad_query; return the gradients of its key and value."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's part of a problem.

    Args:
        problem: the call; its padding is this rank's ``[b, n]``.
        chunks: the chunks of each rank.
        rank: this rank.
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

    def own_chunks(self, batch: int) -> Iterator[tuple[slice | Tensor, Problem]]:
        """Rows and problem of each chunk, the rows sorted by time if causality is by ``order``."""
        before = 0
        for start, stop in self.chunks[self.rank]:
            rows: slice | Tensor = slice(before, before + stop - start)
            problem = replace(self.problem, origin=start)
            if self.order is not None:
                by_time = self.order[start:stop].argsort()
                rows = before + by_time
                problem = replace(problem, positions=(start + by_time).expand(batch, -1))
            if problem.padding is not None:
                problem = replace(problem, padding=problem.padding[:, rows])
            before += stop - start
            yield rows, problem

    def offer(self, block: Block, owner: int, rows: KeyValue, ignored: Tensor | None) -> Offer:
        """A block of rank ``owner`` for the queries of this rank."""
        times: list[Times | None] = [None] * len(block.queries)
        if self.order is not None:
            mine, theirs = self._times(self.rank), tile_rows(block.keys, self._times(owner))
            times = [(tile_rows(tile, mine), theirs) for tile in block.queries]
        key, value = (self.kernels.cast(x) for x in rows)
        queries = list(zip(block.queries, times, strict=True))
        return Offer(key=key, value=value, ignored=ignored, queries=queries)

    def offers_of(
        self, owner: int, key: Tensor, value: Tensor, padding: Tensor | None
    ) -> Iterator[tuple[Block, Offer]]:
        """What rank ``owner`` has for the queries of this rank; key, value and padding are the owner's."""
        for block in self.blocks(owner, self.rank):
            tile = block.keys
            rows = tile.rows_for_kernel(key, tile.heads.kv), tile.rows_for_kernel(value, tile.heads.kv)
            yield block, self.offer(block, owner, rows, tile.ignored_keys(padding))

    def _times(self, rank: int) -> Tensor:
        """The time of each row of a rank, by ``order``: int64 ``[n]``."""
        assert self.order is not None
        return torch.cat([self.order[start:stop] for start, stop in self.chunks[rank]])


def own_forward(query: Tensor, key: Tensor, value: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    """out ``[b, n, h, d]`` and lse ``[b, h, n]`` over the keys that a rank holds itself."""
    batch, seq, heads, _ = query.shape
    dtype = accumulation_dtype(query)
    out = query.new_empty(query.shape, dtype=dtype)
    lse = query.new_empty(batch, heads, seq, dtype=dtype)
    for rows, problem in part.own_chunks(batch):
        chunk = query[:, rows], key[:, rows], value[:, rows]
        out[:, rows], lse[:, :, rows] = part.kernels.forward(*chunk, problem)
    for _, offer in part.offers_of(part.rank, key, value, part.problem.padding):
        part.kernels.absorb(query, out, lse, offer, part.problem.scale)
    return out, lse


def own_backward(saved: Saved, key: Tensor, value: Tensor, part: Part) -> list[Tensor]:
    """This rank's own part of the gradients of its query, key and value."""
    grad_out, query, out, lse = saved
    grads = [x.new_empty(x.shape, dtype=lse.dtype) for x in (query, key, value)]
    for rows, problem in part.own_chunks(len(query)):
        go, q, k, v, o = (x[:, rows] for x in (grad_out, query, key, value, out))
        chunk_grads = part.kernels.backward(go, q, k, v, o, lse[:, :, rows], problem)
        for grad, new in zip(grads, chunk_grads, strict=True):
            grad[:, rows] = new
    for block, offer in part.offers_of(part.rank, key, value, part.problem.padding):
        block_grads = part.kernels.absorb_backward(saved, grads[0], offer, part.problem.scale)
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
        # The CPU's kernels would lose precision in 16 bits.
        return x if x.is_cuda else x.to(accumulation_dtype(x))

    forward = staticmethod(partial_forward)
    backward = staticmethod(partial_backward)

    def absorb(self, query: Tensor, out: Tensor, lse: Tensor, offer: Offer, scale: float) -> None:
        by_row = lse.transpose(1, 2)
        for tile, ignored in _masked(offer):
            rows_out, rows_lse = fused_forward(
                tile.rows_for_kernel(query, tile.heads.query),
                offer.key,
                offer.value,
                is_causal=False,
                scale=scale,
                ignored=ignored,
            )
            rows_out, rows_lse = (tile.rows_from_kernel(x).to(out.dtype) for x in (rows_out, rows_lse))
            merge_rows(tile, out, by_row, rows_out, rows_lse)

    def absorb_backward(self, saved: Saved, grad_query: Tensor, offer: Offer, scale: float) -> KeyValue:
        grad_out, query, out, lse = saved
        by_row = lse.transpose(1, 2)[..., None]
        grads = [torch.zeros_like(x, dtype=grad_query.dtype) for x in (offer.key, offer.value)]
        for tile, ignored in _masked(offer):
            heads = tile.heads.query
            rows_grad_query, *rows_grads = fused_backward(
                tile.rows_for_kernel(grad_out, heads),
                tile.rows_for_kernel(query, heads),
                offer.key,
                offer.value,
                tile.rows_for_kernel(out, heads),
                tile.rows_for_kernel(by_row, heads)[..., 0],
                is_causal=False,
                scale=scale,
                ignored=ignored,
            )
            tile.take(grad_query, heads).add_(tile.rows_from_kernel(rows_grad_query))
            for grad, new in zip(grads, rows_grads, strict=True):
                grad.add_(new)
        return grads[0], grads[1]


def _masked(offer: Offer) -> Iterator[tuple[Tile, Tensor | None]]:
    """Tiles of queries, with the keys they do not see: None, ``[b, keys]`` or ``[b, queries, keys]``."""
    batch, _, num_keys, _ = offer.key.shape
    for tile, times in offer.queries:
        if times is None:
            yield tile, offer.ignored
            continue
        step = max(1, _MASK_ELEMENTS // (batch * num_keys))
        for part, mine in zip(_split(tile, step), torch.split(times[0], step), strict=True):
            hidden = (times[1] > mine[:, None]).expand(batch, -1, -1)
            yield part, hidden if offer.ignored is None else hidden | offer.ignored[:, None]


def tile_rows(tile: Tile, x: Tensor) -> Tensor:
    """The rows of ``x [..., n]`` that belong to a tile of one segment, a view."""
    return x[..., tile.start : tile.start + tile.length][..., tile.offset :: tile.rate]


def _split(tile: Tile, rows: int) -> Iterator[Tile]:
    for start in range(tile.offset, tile.length, rows * tile.rate):
        length = min(tile.length - start, rows * tile.rate)
        yield replace(tile, start=tile.start + start, length=length, offset=0)
