"""The call behind the modules of this package, and how its ranks agree on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..attention import dilated_attention
from ..core.autocast import autocast
from ..core.masks import ignored_keys
from ..core.memory.unified_pool import UnifiedMemoryPool
from ..core.pattern import DilatedPattern
from ..core.sharding import chunks_of
from ..core.validation import check_bool, check_branches, check_qkv
from ..kernels.backends import choose_backend
from ..kernels.problem import Problem
from .computation import Kernels, Part, SdpaKernels
from .config import RingAttentionConfig
from .function import blockwise_function, ring_function
from .sharding import check_shard_length
from .utils.communication import agree, check_travels, report_failure

# What ends a call on one rank before its first message; a warning is one that the user made an error.
REFUSALS = (TypeError, ValueError, NotImplementedError, UserWarning)


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: RingAttentionConfig,
    group: ProcessGroup | None,
    is_causal: bool,
    key_padding_mask: Tensor | None,
    *,
    order: Tensor | None = None,
    grid_shape: Sequence[int] | None = None,
    first_head: int | None = None,
    pool: UnifiedMemoryPool | None = None,
) -> tuple[Tensor, Tensor]:
    """The call behind the modules of this package: out ``[b, n/P, h, d]`` and lse ``[b, h, n/P]``.

    Args:
        query: ``[b, n/P, h, d]``.
        key, value: ``[b, n/P, h_kv, d]``.
        config, group, is_causal, key_padding_mask: as for :class:`RingDilatedAttention`.
        order: int64 ``[n]``, the time of each position, for causality; default: the position.
        grid_shape: what ``order`` was made from.
        first_head: global index of query head 0, if there are other ranks with other heads.
        pool: where message buffers come from; None: the allocator.
    """
    world = 1 if group is None else dist.get_world_size(group)
    around_ring = world > 1
    branches = tuple(zip(config.segment_lengths, config.dilation_rates, strict=True))
    try:
        query, key, value = autocast(query, key, value)
        check_qkv(query, key, value)
        if around_ring:
            check_travels(query, key, value)
        if key_padding_mask is not None:
            key_padding_mask = ignored_keys(key_padding_mask, query)
        check_bool("is_causal", is_causal)
        if first_head is None:
            warn_of_gaps(config, query)
        backend = choose_backend(
            config.backend,
            query.device,
            query.dtype,
            head_dim=query.shape[3],
            branches=branches,
            seq=query.shape[1] * world,
        )
    except REFUSALS as error:
        if group is not None and around_ring:
            report_failure(group, device_of(query), error)
        raise
    seq = query.shape[1] * world
    if group is not None and around_ring:
        key_padding_mask = agree_on_call(
            group, query, key, value, config, is_causal, key_padding_mask, grid_shape=grid_shape
        )
    # From here on what is wrong is wrong on every rank.
    if order is not None and len(order) != seq:
        raise ValueError(
            f"grid_shape must have one cell for each token, got {len(order)} cells, {seq} tokens"
        )
    if not is_causal:
        order = None
    if around_ring:
        check_shard_length(query.shape[1], config.sharding)
    elif config.ring_size in (None, 1) and order is None and first_head is None:
        return dilated_attention(
            query,
            key,
            value,
            config.segment_lengths,
            config.dilation_rates,
            is_causal=is_causal,
            softmax_scale=config.softmax_scale,
            key_padding_mask=key_padding_mask,
            backend=config.backend,
            return_lse=True,
        )
    parts = world if around_ring else config.ring_size or 1
    part = Part(
        problem=Problem(
            branches,
            bool(is_causal),
            _scale(config, query),
            key_padding_mask,
            first_head=first_head or 0,
        ),
        chunks=[
            chunks_of(i, parts, seq, config.sharding if around_ring else "contiguous") for i in range(parts)
        ],
        rank=dist.get_rank(group) if around_ring else 0,
        kernels=_kernels(backend),
        num_heads=query.shape[2],
        group=query.shape[2] // key.shape[2],
        order=order,
    )
    if group is not None and around_ring:
        return ring_function(query, key, value, part, group, config.overlap_communication, pool)
    return blockwise_function(query, key, value, part)


def _kernels(backend: str) -> Kernels:
    if backend == "triton":
        from .variants.triton import TritonKernels  # Triton is optional

        return TritonKernels()
    return SdpaKernels()


def device_of(query: object) -> torch.device:
    """The device for messages about a call, CPU if ``query`` is not a tensor."""
    return query.device if isinstance(query, Tensor) else torch.device("cpu")


def warn_of_gaps(config: RingAttentionConfig, query: Tensor) -> None:
    """Warn, once of each pattern, of tokens of heads of ``query [b, n/P, h, d]`` that no branch serves."""
    DilatedPattern(*check_branches(config.segment_lengths, config.dilation_rates), query.shape[2])


def _scale(config: RingAttentionConfig, query: Tensor) -> float:
    return query.shape[3] ** -0.5 if config.softmax_scale is None else config.softmax_scale


def agree_on_call(
    group: ProcessGroup,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: RingAttentionConfig,
    is_causal: bool,
    key_padding_mask: Tensor | None,
    **more: object,
) -> Tensor | None:
    """Raise RingError unless all ranks make the same call.

    Args:
        more: further values that must be the same on all ranks.

    Returns:
        None if no rank ignores a key; else the mask, all False on a rank without one.
    """
    has_padding = key_padding_mask is not None and bool(key_padding_mask.any())
    headers = agree(
        lambda: {
            "pass": "forward",
            "query": list(query.shape),
            "key": list(key.shape),
            "dtype": str(query.dtype),
            "is_causal": bool(is_causal),
            "segment_lengths": config.segment_lengths,
            "dilation_rates": config.dilation_rates,
            "softmax_scale": _scale(config, query),
            "sharding": config.sharding,
            "overlap_communication": config.overlap_communication,
            "gradients needed": [torch.is_grad_enabled() and x.requires_grad for x in (query, key, value)],
            **more,
            "_has_padding": has_padding,
        },
        group,
        query.device,
    )
    if not any(header["_has_padding"] for header in headers):
        return None
    if key_padding_mask is None:
        return torch.zeros(query.shape[:2], dtype=torch.bool, device=query.device)
    return key_padding_mask
