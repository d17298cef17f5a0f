"""Cutting tensors into the shards of a ring, and putting them together again."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..core.sharding import Sharding, check_rank, check_sharding, chunks_of
from ..core.validation import check_dense, check_int
from .group import Ring, ring_group
from .utils.communication import agree, all_to_all, check_travels


def shard_sequence(
    x: Tensor, rank: int, world_size: int, sharding: Sharding = "contiguous", dim: int = 1
) -> tuple[Tensor, Tensor]:
    """A rank's shard of a sequence, padded at its end with zeros so that all shards are equal.

    Contiguous: rank i holds the i-th of P equal parts. Zigzag: parts i and 2P - 1 - i of 2P.

    Args:
        x: the whole sequence, n along ``dim``; batch first.
        rank, world_size: rank in the ring, and its size P.
        sharding: ``"contiguous"`` or ``"zigzag"``.
        dim: where the sequence runs.

    Returns:
        The shard, n/P along ``dim``, and its padding mask: bool ``[b, n/P]``, True where it is padding
        (``[n/P]`` for ``dim=0``).

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    check_sharding(sharding)
    check_rank(rank, world_size)
    _check_dim("x", x, dim)
    seq = x.shape[dim]
    padded = padded_length(seq, world_size, sharding)
    rows = torch.cat([torch.arange(*chunk) for chunk in chunks_of(rank, world_size, padded, sharding)])
    rows = rows.to(x.device)
    outside = rows >= seq
    if seq == 0:
        shard = x
    else:
        shard = x.index_select(dim, rows.clamp(max=seq - 1))
        shape = [1] * x.dim()
        shape[dim] = len(rows)
        shard = shard.masked_fill(outside.view(shape), 0)
    return shard, outside if dim in (0, -x.dim()) else outside.expand(x.shape[0], -1)


def unshard_sequence(
    shard: Tensor,
    process_group: Ring,
    sharding: Sharding = "contiguous",
    length: int | None = None,
    dim: int = 1,
) -> Tensor:
    """The whole sequence, from every rank's shard: undoes :func:`shard_sequence`.

    If all ranks compute the same loss from the result, divide it by P (not under DDP or FSDP2, which
    average). The gradient of a shard is that of the *sum* of all ranks' losses, as that of
    ``torch.distributed.nn.functional.all_gather`` is. Either all ranks call the backward, or none.

    Args:
        shard: this rank's, n/P along ``dim``.
        process_group: the ring, all of whose ranks call this; ``"local"`` for a ring of one; None means
            ``"local"`` where no other ranks exist.
        sharding: that of :func:`shard_sequence`.
        length: n before padding, to which the result is cut. Default: not cut.
        dim: where the sequence runs.

    Raises:
        TypeError, ValueError: naming the argument and its value.
        NotImplementedError: with other ranks, under torch.func, forward-mode AD or batched gradients, or on
            the device "meta".
        RingError: a rank failed, or has another shard or other arguments.
    """
    check_sharding(sharding)
    _check_dim("shard", shard, dim)
    if length is not None:
        check_int("length", length)
    group = ring_group(process_group)
    world = 1 if group is None else dist.get_world_size(group)
    parts = shard[None]
    if group is not None and world > 1:

        def fields() -> dict[str, Any]:
            check_travels(shard)
            return {
                "shard": list(shard.shape),
                "dtype": str(shard.dtype),
                "sharding": sharding,
                "length": length,
                "dim": dim,
                "gradients needed": torch.is_grad_enabled() and shard.requires_grad,
            }

        agree(fields, group, shard.device)
        parts = _Gather.apply(shard, group)  # type: ignore[no-untyped-call]
    seq = world * shard.shape[dim]
    check_shard_length(shard.shape[dim], sharding)
    if length is not None and not 0 <= length <= seq:
        raise ValueError(f"length must be in [0, {seq}] (all shards), got {length}")
    end = seq if length is None else length
    pieces: list[tuple[int, Tensor]] = []
    for rank, part in enumerate(parts):
        chunks = chunks_of(rank, world, seq, sharding)
        of_rank = part.split([stop - start for start, stop in chunks], dim)
        for (start, stop), piece in zip(chunks, of_rank, strict=True):
            pieces.append((start, piece.narrow(dim, 0, max(0, min(stop, end) - start))))
    return torch.cat([piece for _, piece in sorted(pieces, key=itemgetter(0))], dim)


class _Gather(torch.autograd.Function):
    """Every rank's shard ``[P, ...]``, by rank."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        shard = shard.contiguous()
        parts = [torch.empty_like(shard) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, shard, group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        def fields() -> dict[str, Any]:
            check_travels(grad)
            return {"pass": "backward of unshard_sequence", "parts": list(grad.shape)}

        agree(fields, ctx.group, grad.device)
        return all_to_all(grad, ctx.group).sum(0), None


def check_shard_length(length: int, sharding: Sharding) -> None:
    """Raise ValueError for a zigzag shard that is not two equal parts."""
    if sharding == "zigzag" and length % 2:
        raise ValueError(f"sharding='zigzag' needs an even number of tokens on each rank, got {length}")


def _check_dim(name: str, x: Tensor, dim: int) -> None:
    check_dense(name, x)
    check_int("dim", dim)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be a dimension of the tensor, got {dim=}, shape {list(x.shape)}")


def padded_length(seq: int, world_size: int, sharding: Sharding) -> int:
    """The length of a sequence that is padded so that all shards are equal."""
    parts = world_size if sharding == "contiguous" else 2 * world_size
    return -(-seq // parts) * parts
