"""Dilated attention over a sequence that several ranks hold in parts: messages and autograd.

Letters: b batch, n this rank's rows, h query heads, g key/value heads, d head dimension, P ranks.

In hop t rank i computes with keys and values of rank i - t (modulo P), while those of the next hop are under
way. Only the dilated rows of segments in which rank i holds a token travel. The backward fetches them again
and sends the gradients of each block back to its owner, which adds them up in the accumulation dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from kernel_pytorch.groups import Message, Pending

from ..core.memory.unified_pool import UnifiedMemoryPool
from ..kernels.operator import refuse_transforms
from ..kernels.problem import check_scores
from .computation import KeyValue, Offer, Part, add_to_owner, own_backward, own_forward
from .schedule import Block
from .utils.communication import NO_TRANSFORMS, agree, check_travels


class Parcel:
    """What one rank sends another in one hop, as one flat tensor: each block's keys, then its values.

    With padding there is a second flat tensor, bool: which rows are ignored.
    """

    def __init__(
        self,
        blocks: list[Block],
        key: Tensor,
        dtype: torch.dtype,
        has_padding: bool,
        pool: UnifiedMemoryPool | None,
    ) -> None:
        """For blocks of tensors like ``key [b, n, g, d]``."""
        batch, _, _, head_dim = key.shape
        self.blocks = blocks
        shapes = [(batch, block.num_heads, block.num_rows, head_dim) for block in blocks for _ in range(2)]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self._pool = pool
        self.content = (
            key.new_empty(sum(sizes), dtype=dtype)
            if pool is None
            else pool.get_buffer(sum(sizes), dtype, key.device)
        )
        parts = torch.split(self.content, sizes)
        views = [x.view(shape) for x, shape in zip(parts, shapes, strict=True)]
        self.rows: list[KeyValue] = list(zip(views[::2], views[1::2], strict=True))
        """Key and value of each block: views of ``content``."""
        self.ignored: Tensor | None = None
        self.padding: list[Tensor | None] = [None] * len(blocks)
        """Which rows of each block are ignored, bool ``[b, rows]``: views of ``ignored``."""
        if has_padding:
            counts = [block.num_rows for block in blocks]
            self.ignored = key.new_empty(batch * sum(counts), dtype=torch.bool)
            flat = torch.split(self.ignored, [batch * count for count in counts])
            self.padding = [x.view(batch, count) for x, count in zip(flat, counts, strict=True)]

    def pack(self, key: Tensor, value: Tensor, padding: Tensor | None) -> Parcel:
        """Copy the owner's rows into it."""
        for block, rows, ignored in zip(self.blocks, self.rows, self.padding, strict=True):
            for view, x in zip(rows, (key, value), strict=True):
                view.copy_(block.keys.take(x, block.keys.heads.kv)[:, 0].transpose(1, 2))
            if ignored is not None:
                assert padding is not None
                ignored.copy_(block.keys.take(padding[..., None], slice(0, 1))[:, 0, :, 0])
        return self

    def release(self) -> None:
        """Return the memory to the pool: no message may be under way, and nothing of it may be used again."""
        self.rows = []
        if self._pool is not None:
            self._pool.return_buffer(self.content)

    def messages(self, peer: int) -> list[Message]:
        """What to send to, or receive from, ``peer``."""
        tensors = [x for x in (self.content, self.ignored) if x is not None and x.numel()]
        return [(peer, x) for x in tensors]


class _Hops:
    """The hops of one forward or backward: in hop t from rank i - t to rank i, from rank i to rank i + t."""

    def __init__(
        self,
        group: ProcessGroup,
        key: Tensor,
        value: Tensor,
        part: Part,
        overlap: bool,
        pool: UnifiedMemoryPool | None,
    ) -> None:
        self.group, self.part, self.overlap, self.pool = group, part, overlap, pool
        self.key, self.value = key, value
        self.world = len(part.chunks)

    def peers(self, hop: int) -> tuple[int, int]:
        """The ranks to receive from and to send to."""
        return (self.part.rank - hop) % self.world, (self.part.rank + hop) % self.world

    def _post(self, hop: int) -> tuple[Pending, Parcel, Parcel]:
        source, target = self.peers(hop)
        part, padding = self.part, self.part.problem.padding
        received, sent = (
            Parcel(part.blocks(owner, user), self.key, self.key.dtype, padding is not None, self.pool)
            for owner, user in ((source, part.rank), (part.rank, target))
        )
        sent.pack(self.key, self.value, padding)
        return Pending(self.group, sent.messages(target), received.messages(source)), received, sent

    def __iter__(self) -> Iterator[tuple[int, Parcel | None]]:
        """``(0, None)`` while the first message is under way, then each hop with what was received."""
        under_way = self._post(1) if self.overlap and self.world > 1 else None
        yield 0, None
        for hop in range(1, self.world):
            pending, received, sent = under_way or self._post(hop)
            pending.wait()
            sent.release()
            under_way = self._post(hop + 1) if self.overlap and hop + 1 < self.world else None
            yield hop, received
            received.release()


def ring_function(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    part: Part,
    group: ProcessGroup,
    overlap: bool,
    pool: UnifiedMemoryPool | None,
) -> tuple[Tensor, Tensor]:
    """out ``[b, n, h, d]`` and lse ``[b, h, n]`` of one rank's query ``[b, n, h, d]``, key and value
    ``[b, n, g, d]``; lse is not differentiable.
    """
    return RingFunction.apply(query, key, value, part, group, overlap, pool)  # type: ignore[no-untyped-call,no-any-return]


# Unrolled over ranks, blocks and tiles the graph would take minutes to compile. This is what
# torch.compiler.disable does, but that imports the compiler at once and not at the first call.
@_disable_dynamo
def blockwise_function(query: Tensor, key: Tensor, value: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    """What :func:`ring_function` computes on all ranks, on one device: all tensors are whole."""
    refuse_transforms(NO_TRANSFORMS, query, key, value)
    return BlockwiseFunction.apply(query, key, value, part)  # type: ignore[no-untyped-call,no-any-return]


class RingFunction(torch.autograd.Function):
    """Behind :func:`ring_function`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        part: Part,
        group: ProcessGroup,
        overlap: bool,
        pool: UnifiedMemoryPool | None,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (part.kernels.cast(x) for x in (query, key, value))
        hops = _Hops(group, key, value, part, overlap, pool)
        for hop, received in hops:
            if received is None:
                out, lse = own_forward(q, k, v, part)
                continue
            owner, _ = hops.peers(hop)
            for block, rows, ignored in zip(received.blocks, received.rows, received.padding, strict=True):
                offer = part.offer(block, owner, rows, ignored)
                part.kernels.absorb(q, out, lse, offer, part.problem.scale)
        out = out.to(query.dtype)
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.rest = part, group, overlap, pool
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        query, key, value, out, lse = ctx.saved_tensors
        part, group, overlap, pool = ctx.rest

        # Detects a rank that makes another call instead of this backward.
        def fields() -> dict[str, Any]:
            check_travels(grad_out)
            check_scores(grad_out, lse)
            return {"pass": "backward", "query": list(query.shape)}

        agree(fields, group, query.device)
        go, q, k, v, o = (part.kernels.cast(x) for x in (grad_out, query, key, value, out))
        saved = go, q, o, lse
        hops = _Hops(group, key, value, part, overlap, pool)
        returning: tuple[Pending, Parcel, Parcel] | None = None
        for hop, received in hops:
            if received is None:
                grads = own_backward(saved, k, v, part)
                continue
            source, target = hops.peers(hop)
            give = Parcel(received.blocks, key, grads[1].dtype, False, pool)
            for block, rows, ignored, given in zip(
                received.blocks, received.rows, received.padding, give.rows, strict=True
            ):
                offer = part.offer(block, source, rows, ignored)
                found = part.kernels.absorb_backward(saved, grads[0], offer, part.problem.scale)
                for view, x in zip(given, found, strict=True):
                    view.copy_(x)
            _add_returned(returning, grads)
            get = Parcel(part.blocks(part.rank, target), key, grads[1].dtype, False, pool)
            returning = Pending(group, give.messages(source), get.messages(target)), get, give
        _add_returned(returning, grads)
        return (*(x.to(y.dtype) for x, y in zip(grads, (query, key, value), strict=True)), *[None] * 4)


class BlockwiseFunction(torch.autograd.Function):
    """Behind :func:`blockwise_function`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        q, k, v = (part.kernels.cast(x) for x in (query, key, value))
        outs, lses = [], []
        for mine in _virtual_ranks(part):
            my_q, my_k, my_v = (_rows_at(mine, mine.rank, x) for x in (q, k, v))
            out, lse = own_forward(my_q, my_k, my_v, mine)
            for _, _, offer in _offers_of_others(mine, k, v, part.problem.padding):
                part.kernels.absorb(my_q, out, lse, offer, part.problem.scale)
            outs.append(out)
            lses.append(lse)
        out, lse = torch.cat(outs, 1).to(query.dtype), torch.cat(lses, 2)
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.part = part
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        query, key, value, out, lse = ctx.saved_tensors
        part = ctx.part
        refuse_transforms(NO_TRANSFORMS, grad_out)
        check_scores(grad_out, lse)
        go, q, k, v, o = (part.kernels.cast(x) for x in (grad_out, query, key, value, out))
        total = [torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v)]
        for mine in _virtual_ranks(part):
            my_go, my_q, my_k, my_v, my_o = (_rows_at(mine, mine.rank, x) for x in (go, q, k, v, o))
            saved = my_go, my_q, my_o, lse[..., slice(*mine.chunks[mine.rank][0])]
            grads = own_backward(saved, my_k, my_v, mine)
            for owner, block, offer in _offers_of_others(mine, k, v, part.problem.padding):
                found = part.kernels.absorb_backward(saved, grads[0], offer, part.problem.scale)
                add_to_owner(block, found, *(_rows_at(mine, owner, x) for x in total[1:]))
            for grad, x in zip(grads, total, strict=True):
                _rows_at(mine, mine.rank, x).add_(grad)
        return (*(x.to(y.dtype) for x, y in zip(total, (query, key, value), strict=True)), None)


def _virtual_ranks(part: Part) -> Iterator[Part]:
    for rank, ((start, stop),) in enumerate(part.chunks):
        padding = None if part.problem.padding is None else part.problem.padding[:, start:stop]
        yield replace(part, rank=rank, problem=replace(part.problem, padding=padding))


def _rows_at(part: Part, rank: int, x: Tensor) -> Tensor:
    return x[:, slice(*part.chunks[rank][0])]


def _offers_of_others(
    part: Part, key: Tensor, value: Tensor, padding: Tensor | None
) -> Iterator[tuple[int, Block, Offer]]:
    for owner in range(len(part.chunks)):
        if owner != part.rank:
            ignored = None if padding is None else _rows_at(part, owner, padding)
            rows = _rows_at(part, owner, key), _rows_at(part, owner, value)
            for block, offer in part.offers_of(owner, *rows, ignored):
                yield owner, block, offer


def _add_returned(returning: tuple[Pending, Parcel, Parcel] | None, grads: list[Tensor]) -> None:
    if returning is None:
        return
    pending, got, given = returning
    pending.wait()
    for block, rows in zip(got.blocks, got.rows, strict=True):
        add_to_owner(block, rows, grads[1], grads[2])
    got.release()
    given.release()


def _refuse_second_derivative() -> None:
    # once_differentiable would accept it if the incoming gradient is constant, and drop the other terms.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "dilated attention around a ring cannot be differentiated twice (create_graph=True)"
        )
