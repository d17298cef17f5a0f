"""Dilated attention over a sequence that several ranks hold in parts: exact, forward and backward.

Letters: b batch, n this rank's rows, h query heads, g key/value heads, d head dimension, P ranks.

In hop t a rank computes with the keys and values of the rank t places before it, while those of the next
hop are under way. Only the rows that some local query can use travel. The backward fetches them again, and
sends the gradients of each block back to its owner, who adds them up in the accumulation dtype. Every
branch's fused backward is fed with the merged output and lse, so its result is the exact part of the whole
(as on one device).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..core.sharding import Chunk
from ..kernels.fused import fused_backward, fused_forward
from ..kernels.sdpa import Problem, Tile, merge_rows, partial_backward, partial_forward
from .schedule import Block, blocks_between
from .utils.communication import Pending

# Queries times keys of an explicit mask, which only causality against the order of the rows needs.
_MASK_ELEMENTS = 1 << 22

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's part of a problem.

    Args:
        problem: the call; its padding is this rank's ``[b, n]``.
        chunks: the chunks of each rank.
        rank: which of them are these rows.
        num_heads, group: query heads, and how many of them share a key/value head.
        order: int64 ``[seq]``, for causality by another order than that of the rows: the time of each
            position.
    """

    problem: Problem
    chunks: Sequence[Sequence[Chunk]]
    rank: int
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
            if self.order is None or not problem.is_causal:
                yield rows, problem, None
                continue
            by_time = self.order[start:stop].argsort()
            ranks = (start + by_time).expand(padding.shape if padding is not None else (1, -1))
            if padding is not None:
                problem = replace(problem, padding=padding[:, by_time])
            yield rows, replace(problem, positions=ranks), by_time

    def times(self, owner: int) -> Tensor | None:
        """When each row of a rank was, if that is not the order of the rows: int64 ``[n]``."""
        if self.order is None or not self.problem.is_causal:
            return None
        return torch.cat([self.order[start:stop] for start, stop in self.chunks[owner]])


def own_forward(query: Tensor, key: Tensor, value: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    """out ``[b, n, h, d]`` and lse ``[b, n, h]`` over the keys that a rank holds itself."""
    batch, seq, heads, _ = query.shape
    dtype = _accumulation(query)
    out = query.new_empty(query.shape, dtype=dtype)
    lse = query.new_empty(batch, seq, heads, dtype=dtype)
    for rows, problem, by_time in part.own_chunks():
        chunk = [_take(x, rows, by_time) for x in (query, key, value)]
        chunk_out, chunk_lse = partial_forward(chunk[0], chunk[1], chunk[2], _sized(problem, batch))
        _put(out, rows, by_time, chunk_out)
        _put(lse, rows, by_time, chunk_lse.transpose(1, 2))
    for block in part.blocks(part.rank, part.rank):
        rows_kv = _rows_of(block, key, value)
        _absorb(
            query, out, lse, block, rows_kv, block.keys.ignored_keys(part.problem.padding), part, part.rank
        )
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


def _accumulation(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows_of(block: Block, key: Tensor, value: Tensor) -> KeyValue:
    """A block's rows ``[b, g', rows, d]`` of the owner's key and value ``[b, n, g, d]``."""
    tile = block.keys
    return tile.rows_for_kernel(key, tile.heads.kv), tile.rows_for_kernel(value, tile.heads.kv)


def _asking(
    block: Block, padding: Tensor | None, part: Part, owner: int
) -> Iterator[tuple[Tile, Tensor | None]]:
    """Tiles of queries, with the keys of the block that they do not see."""
    times = part.times(part.rank)
    if times is None:
        for tile in block.queries:
            yield tile, padding
        return
    key_times = _tile_rows(block.keys, _owner_times(part, owner))
    for tile in block.queries:
        for some in _split(tile, max(1, _MASK_ELEMENTS // len(key_times))):
            hidden = key_times > _tile_rows(some, times)[:, None]
            yield some, hidden[None] if padding is None else hidden | padding[:, None]


def _owner_times(part: Part, owner: int) -> Tensor:
    times = part.times(owner)
    assert times is not None
    return times


def _tile_rows(tile: Tile, x: Tensor) -> Tensor:
    return x[tile.start : tile.start + tile.length][tile.offset :: tile.rate]


def _split(tile: Tile, rows: int) -> Iterator[Tile]:
    for start in range(tile.offset, tile.length, rows * tile.rate):
        length = min(tile.length - start, rows * tile.rate)
        yield replace(tile, start=tile.start + start, length=length, offset=0)


def _absorb(
    query: Tensor,
    out: Tensor,
    lse: Tensor,
    block: Block,
    rows_kv: KeyValue,
    padding: Tensor | None,
    part: Part,
    owner: int,
) -> None:
    """Merge attention over a block's rows ``[b, g', rows, d]`` into out ``[b, n, h, d]`` and lse."""
    for tile, ignored in _asking(block, padding, part, owner):
        rows_out, rows_lse = fused_forward(
            tile.rows_for_kernel(query, tile.heads.query),
            *rows_kv,
            is_causal=False,
            scale=part.problem.scale,
            ignored=_for_batch(ignored, query),
        )
        rows_out, rows_lse = (tile.rows_from_kernel(x).to(out.dtype) for x in (rows_out, rows_lse))
        merge_rows(tile, out, lse, rows_out, rows_lse)


def _for_batch(ignored: Tensor | None, query: Tensor) -> Tensor | None:
    return None if ignored is None else ignored.expand(query.shape[0], *ignored.shape[1:])


def own_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, part: Part
) -> list[Tensor]:
    """This rank's own part of the gradients of its query, key and value; ``lse [b, h, n]`` is merged."""
    dtype = _accumulation(query)
    grads = [x.new_empty(x.shape, dtype=dtype) for x in (query, key, value)]
    for rows, problem, by_time in part.own_chunks():
        chunk = [_take(x, rows, by_time) for x in (grad_out, query, key, value, out, lse.transpose(1, 2))]
        chunk_grads = partial_backward(*chunk[:5], chunk[5].transpose(1, 2), _sized(problem, len(query)))
        for grad, new in zip(grads, chunk_grads, strict=True):
            _put(grad, rows, by_time, new)
    for block in part.blocks(part.rank, part.rank):
        padding = block.keys.ignored_keys(part.problem.padding)
        saved = (grad_out, query, out, lse)
        block_grads = _absorb_backward(
            saved, grads[0], block, _rows_of(block, key, value), padding, part, part.rank
        )
        _return(block, block_grads, grads[1], grads[2])
    return grads


def _absorb_backward(
    saved: tuple[Tensor, Tensor, Tensor, Tensor],
    grad_query: Tensor,
    block: Block,
    rows_kv: KeyValue,
    padding: Tensor | None,
    part: Part,
    owner: int,
) -> KeyValue:
    """Add a block's part to grad_query ``[b, n, h, d]``; return the block's own ``[b, g', rows, d]``."""
    grad_out, query, out, lse = saved
    lse = lse.transpose(1, 2)
    grads = [torch.zeros_like(x, dtype=grad_query.dtype) for x in rows_kv]
    for tile, ignored in _asking(block, padding, part, owner):
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


def _return(block: Block, block_grads: KeyValue, grad_key: Tensor, grad_value: Tensor) -> None:
    """Add a block's gradients to those of the owner's key and value ``[b, n, g, d]``."""
    tile = block.keys
    for grad, new in zip((grad_key, grad_value), block_grads, strict=True):
        tile.take(grad, tile.heads.kv).add_(tile.rows_from_kernel(new))


class Parcel:
    """What one rank sends another in one hop, as one flat tensor: each block's keys, then its values.

    With padding, a second one of bytes: which rows are ignored.
    """

    def __init__(self, blocks: list[Block], key: Tensor, dtype: torch.dtype, has_padding: bool) -> None:
        """For blocks of tensors like ``key [b, n, g, d]``."""
        batch, _, _, head_dim = key.shape
        self.blocks = blocks
        shapes = [(batch, block.num_heads, block.num_rows, head_dim) for block in blocks for _ in range(2)]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self.content = key.new_empty(sum(sizes), dtype=dtype)
        parts = self.content.split(sizes)
        views = [x.view(shape) for x, shape in zip(parts, shapes, strict=True)]
        self.rows: list[KeyValue] = list(zip(views[::2], views[1::2], strict=True))
        """Key and value of each block: views of ``content``."""
        self.ignored: Tensor | None = None
        self.padding: list[Tensor | None] = [None] * len(blocks)
        """Which rows of each block are ignored, bool ``[b, rows]``: views of ``ignored``."""
        if has_padding:
            counts = [block.num_rows for block in blocks]
            self.ignored = key.new_empty(batch * sum(counts), dtype=torch.bool)
            flat = self.ignored.split([batch * count for count in counts])
            self.padding = [x.view(batch, count) for x, count in zip(flat, counts, strict=True)]

    def pack(self, key: Tensor, value: Tensor, padding: Tensor | None) -> Parcel:
        """Fill with the owner's rows."""
        for block, rows, ignored in zip(self.blocks, self.rows, self.padding, strict=True):
            for view, x in zip(rows, (key, value), strict=True):
                view.copy_(block.keys.take(x, block.keys.heads.kv)[:, 0].transpose(1, 2))
            if ignored is not None:
                ignored.copy_(block.keys.ignored_keys(padding))
        return self

    def messages(self, peer: int) -> list[tuple[int, Tensor]]:
        """What to send to, or receive from, ``peer``."""
        tensors = [x for x in (self.content, self.ignored) if x is not None and x.numel()]
        return [(peer, x) for x in tensors]


class _Hops:
    """The hops of one pass: keys and values from each rank before, to each rank after."""

    def __init__(self, group: ProcessGroup, key: Tensor, value: Tensor, part: Part, overlap: bool) -> None:
        self.group, self.part, self.overlap = group, part, overlap
        self.key, self.value = key, value
        self.world = len(part.chunks)

    def peers(self, hop: int) -> tuple[int, int]:
        """Whom to receive from, and whom to send to."""
        return (self.part.rank - hop) % self.world, (self.part.rank + hop) % self.world

    def _post(self, hop: int) -> tuple[Pending, Parcel]:
        source, target = self.peers(hop)
        part, padding = self.part, self.part.problem.padding
        received, sent = (
            Parcel(part.blocks(owner, user), self.key, self.key.dtype, padding is not None)
            for owner, user in ((source, part.rank), (part.rank, target))
        )
        sent.pack(self.key, self.value, padding)
        return Pending(self.group, sent.messages(target), received.messages(source)), received

    def __iter__(self) -> Iterator[tuple[int, Parcel | None]]:
        """Hop 0, for what needs no message, then each hop with what it brought."""
        under_way = self._post(1) if self.overlap and self.world > 1 else None
        yield 0, None
        for hop in range(1, self.world):
            pending, received = under_way or self._post(hop)
            pending.wait()
            under_way = self._post(hop + 1) if self.overlap and hop + 1 < self.world else None
            yield hop, received


class RingFunction(torch.autograd.Function):
    """query ``[b, n, h, d]``, key, value ``[b, n, g, d]`` of one rank to its out ``[b, n, h, d]``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        part: Part,
        group: ProcessGroup,
        overlap: bool,
    ) -> Tensor:
        q, k, v = (_for_kernel(x) for x in (query, key, value))
        hops = _Hops(group, key, value, part, overlap)
        for hop, received in hops:
            if received is None:
                out, lse = own_forward(q, k, v, part)
                continue
            owner, _ = hops.peers(hop)
            for block, rows, padding in zip(received.blocks, received.rows, received.padding, strict=True):
                rows_kv = (_for_kernel(rows[0]), _for_kernel(rows[1]))
                _absorb(q, out, lse, block, rows_kv, padding, part, owner)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse.transpose(1, 2).contiguous())
        ctx.rest = part, group, overlap
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _refuse_second_derivative()
        query, key, value, out, lse = ctx.saved_tensors
        part, group, overlap = ctx.rest
        go, q, k, v, o = (_for_kernel(x) for x in (grad_out, query, key, value, out))
        hops = _Hops(group, key, value, part, overlap)
        returning: tuple[Pending, Parcel, Parcel] | None = None
        for hop, received in hops:
            if received is None:
                grads = own_backward(go, q, k, v, o, lse, part)
                continue
            source, target = hops.peers(hop)
            give = Parcel(received.blocks, key, grads[1].dtype, False)
            for block, rows, padding, given in zip(
                received.blocks, received.rows, received.padding, give.rows, strict=True
            ):
                rows_kv = (_for_kernel(rows[0]), _for_kernel(rows[1]))
                found = _absorb_backward((go, q, o, lse), grads[0], block, rows_kv, padding, part, source)
                for view, x in zip(given, found, strict=True):
                    view.copy_(x)
            _add_returned(returning, grads)
            get = Parcel(part.blocks(part.rank, target), key, grads[1].dtype, False)
            returning = Pending(group, give.messages(source), get.messages(target)), get, give
        _add_returned(returning, grads)
        return (*(x.to(y.dtype) for x, y in zip(grads, (query, key, value), strict=True)), *[None] * 3)


class BlockwiseFunction(torch.autograd.Function):
    """What :class:`RingFunction` computes on all ranks, on one device: query ``[b, n, h, d]`` is whole."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, part: Part) -> Tensor:  # type: ignore[override]
        q, k, v = (_for_kernel(x) for x in (query, key, value))
        outs, lses = [], []
        for mine in _virtual_ranks(part):
            queries = _rows_at(mine, mine.rank, q)
            out, lse = own_forward(queries, _rows_at(mine, mine.rank, k), _rows_at(mine, mine.rank, v), mine)
            for owner, block, rows_kv, padding in _blocks_of_others(mine, k, v, part.problem.padding):
                _absorb(queries, out, lse, block, rows_kv, padding, mine, owner)
            outs.append(out)
            lses.append(lse)
        out = torch.cat(outs, 1).to(query.dtype)
        ctx.save_for_backward(query, key, value, out, torch.cat(lses, 1).transpose(1, 2).contiguous())
        ctx.part = part
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _refuse_second_derivative()
        query, key, value, out, lse = ctx.saved_tensors
        part = ctx.part
        go, q, k, v, o = (_for_kernel(x) for x in (grad_out, query, key, value, out))
        total = [torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v)]
        for mine in _virtual_ranks(part):
            own = [_rows_at(mine, mine.rank, x) for x in (go, q, k, v, o, lse.transpose(1, 2))]
            lse_rows = own[5].transpose(1, 2)
            grads = own_backward(*own[:5], lse_rows, mine)
            saved = (own[0], own[1], own[4], lse_rows)
            for owner, block, rows_kv, padding in _blocks_of_others(mine, k, v, part.problem.padding):
                found = _absorb_backward(saved, grads[0], block, rows_kv, padding, mine, owner)
                _return(block, found, *(_rows_at(mine, owner, x) for x in total[1:]))
            for grad, x in zip(grads, total, strict=True):
                _rows_at(mine, mine.rank, x).add_(grad)
        return (*(x.to(y.dtype) for x, y in zip(total, (query, key, value), strict=True)), None)


def _virtual_ranks(part: Part) -> Iterator[Part]:
    for rank, ((start, stop),) in enumerate(part.chunks):
        padding = None if part.problem.padding is None else part.problem.padding[:, start:stop]
        yield replace(part, rank=rank, problem=replace(part.problem, padding=padding))


def _rows_at(part: Part, rank: int, x: Tensor) -> Tensor:
    return x[:, slice(*part.chunks[rank][0])]


def _blocks_of_others(
    part: Part, key: Tensor, value: Tensor, padding: Tensor | None
) -> Iterator[tuple[int, Block, KeyValue, Tensor | None]]:
    for owner in range(len(part.chunks)):
        if owner != part.rank:
            rows_kv = _rows_at(part, owner, key), _rows_at(part, owner, value)
            ignored = None if padding is None else _rows_at(part, owner, padding)
            for block in part.blocks(owner, part.rank):
                yield owner, block, _rows_of(block, *rows_kv), block.keys.ignored_keys(ignored)


def _add_returned(returning: tuple[Pending, Parcel, Parcel] | None, grads: list[Tensor]) -> None:
    if returning is None:
        return
    pending, got, _ = returning
    pending.wait()
    for block, rows in zip(got.blocks, got.rows, strict=True):
        _return(block, rows, grads[1], grads[2])


def _refuse_second_derivative() -> None:
    # once_differentiable would let it pass where the incoming gradient is constant, and lose the rest.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "dilated attention around a ring cannot be differentiated twice (create_graph=True)"
        )


def _for_kernel(x: Tensor) -> Tensor:
    """In float32 where a CPU kernel would lose precision in 16 bits."""
    return x if x.is_cuda else x.to(_accumulation(x))
