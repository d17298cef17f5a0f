"""The ring with the Triton kernels, on every rank of a world, against the oracle on one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from problems import Problem
from ring_problem import exact, ring
from torch.distributed import ProcessGroup
from worlds import World

from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    shard_sequence,
    unshard_sequence,
)

Worlds = Callable[[int], World]

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton (Linux)"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the worlds are of CPU processes, interpreted"),
]

PLAIN = Problem(1, 24, 2, 1, 16, ((8, 1), (16, 2), (24, 3)), True, False, "none", "contiguous", 0)


@pytest.mark.parametrize(
    ("ranks", "sharding", "problem"),
    [
        pytest.param(2, "contiguous", PLAIN, id="contiguous-causal"),
        pytest.param(
            3, "contiguous", replace(PLAIN, is_causal=False, padded=True), id="bidirectional-padded"
        ),
        pytest.param(2, "zigzag", PLAIN, id="zigzag-causal"),
        pytest.param(2, "contiguous", replace(PLAIN, branches=((9, 1), (12, 2))), id="ends-apart"),
        pytest.param(2, "zigzag", replace(PLAIN, kv_heads=2, padded=True), id="zigzag-padded"),
    ],
)
def test_every_rank_gets_the_shard_of_the_whole(world: Worlds, ranks: int, sharding: str, problem: Problem):
    got = ring(world(ranks), problem, torch.float32, backend="triton", sharding=sharding)
    for x, y in zip(got, exact(problem, torch.float32), strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=2e-5)


def along_a_curve(group: ProcessGroup, backend: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = RingAttentionConfig(segment_lengths=[8, 24], dilation_rates=[1, 2], backend=backend)
    module = RingDilatedAttentionHilbert(config, group, grid_shape=(4, 6))
    qkv = [torch.randn(1, 24, 2, 16) for _ in range(3)]
    shards = [shard_sequence(module.apply_hilbert_ordering(x), group.rank(), group.size())[0] for x in qkv]
    leaves = [x.requires_grad_() for x in shards]
    out = module(*leaves, is_causal=True)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    return [unshard_sequence(x, group, "contiguous", 24) for x in (out, *grads)]


def test_causality_along_a_curve_is_by_position(world: Worlds):
    got, want = (world(2).results(along_a_curve, backend)[0] for backend in ("triton", "sdpa"))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def test_key_blocks_merged_on_one_device():
    qkv = [x.requires_grad_() for x in PLAIN.tensors(torch.float32)[:3]]
    config = RingAttentionConfig(
        segment_lengths=[8, 16, 24], dilation_rates=[1, 2, 3], ring_size=3, backend="triton"
    )
    out = RingDilatedAttention(config)(*qkv, is_causal=True)
    expected, *expected_grads, _ = exact(PLAIN, torch.float32)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-5)
    grads = torch.autograd.grad(out, qkv, PLAIN.tensors(torch.float32)[3])
    for x, y in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=2e-5)
