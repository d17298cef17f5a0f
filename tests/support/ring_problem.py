"""Ring attention on every rank of a world against the oracle on one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import oracle
import torch
from problems import Problem, problems
from torch import Tensor
from torch.distributed import ProcessGroup
from worlds import World

from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    shard_sequence,
    unshard_sequence,
)

# Positions are for one device.
ring_problems = problems.map(lambda problem: replace(problem, ranked="none"))


def config_of(problem: Problem, **options: Any) -> RingAttentionConfig:
    segment_lengths, dilation_rates = zip(*problem.branches, strict=True)
    return RingAttentionConfig(segment_lengths=segment_lengths, dilation_rates=dilation_rates, **options)


def mask_of(problem: Problem) -> Tensor:
    return (
        torch.zeros(problem.batch, problem.seq, dtype=torch.bool)
        if problem.padding is None
        else problem.padding
    )


def tensors_of(problem: Problem, dtype: torch.dtype, garbage: float | None) -> list[Tensor]:
    """Query, key, value and a gradient of the output; ``garbage`` in the keys and values to be ignored."""
    query, key, value, grad = (x.detach() for x in problem.tensors(dtype))
    if garbage is not None:
        ignored = mask_of(problem)[..., None, None]
        key, value = key.masked_fill(ignored, garbage), value.masked_fill(ignored, garbage)
    return [query, key, value, grad]


def ring_rank(
    group: ProcessGroup,
    problem: Problem,
    dtype: torch.dtype,
    options: dict[str, Any],
    garbage: float | None = None,
) -> list[Tensor]:
    """On one rank: its shards' out, gradients and lse, put together with the others'."""
    rank, size = group.rank(), group.size()
    config = config_of(problem, **options)
    sharding = config.sharding
    shards = [shard_sequence(x, rank, size, sharding) for x in tensors_of(problem, dtype, garbage)]
    q, k, v = (shard.requires_grad_() for shard, _ in shards[:3])
    padded, outside = shard_sequence(mask_of(problem), rank, size, sharding)
    out, lse = RingDilatedAttention(config, group)(q, k, v, problem.is_causal, padded | outside, True)
    grads = torch.autograd.grad(out, (q, k, v), shards[3][0])
    assert all(x.is_contiguous() and x.dtype == dtype for x in (out, *grads))
    assert (lse.is_contiguous(), lse.requires_grad) == (True, False)
    whole = [unshard_sequence(x, group, sharding, problem.seq) for x in (out, *grads)]
    return [*whole, unshard_sequence(lse, group, sharding, problem.seq, dim=2)]


def ring(world: World, problem: Problem, dtype: torch.dtype = torch.float64, **options: Any) -> list[Tensor]:
    """out, the three gradients and lse; every rank has gathered the same."""
    first, *others = world.results(ring_rank, problem, dtype, options)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    return first


def exact(
    problem: Problem, dtype: torch.dtype = torch.float64, positions: Tensor | None = None
) -> list[Tensor]:
    """out, the three gradients and lse of the oracle in float64, for inputs rounded to ``dtype``."""
    *inputs, grad = (x.detach().double() for x in problem.tensors(dtype))
    inputs = [x.requires_grad_() for x in inputs]
    out, lse = oracle.attention(
        *inputs,
        problem.branches,
        is_causal=problem.is_causal,
        padding=problem.padding,
        positions=positions,
    )
    return [out.detach(), *torch.autograd.grad(out, inputs, grad), lse]
