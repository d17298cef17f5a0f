"""The bytes between any two ranks: against the definition, and against what was sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem
from ring_problem import config_of, ring_problems, ring_rank
from torch import Tensor
from worlds import World

from dilated_attention_pytorch import DilatedPattern
from dilated_attention_pytorch.core.sharding import chunks_of
from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    ring_traffic,
    shard_sequence,
)

Worlds = Callable[[int], World]
SHARDINGS = ("contiguous", "zigzag")
can_order = pytest.mark.skipif(
    "sort_ranks" not in inspect.signature(dist.new_group).parameters,
    reason="this PyTorch sorts the ranks of a group",
)


@settings(max_examples=150)
@given(problem=ring_problems, size=st.integers(1, 5), sharding=st.sampled_from(SHARDINGS))
def test_traffic_is_the_remote_keys_by_the_rank_that_holds_them(problem: Problem, size: int, sharding: str):
    parts = size if sharding == "contiguous" else 2 * size
    seq = problem.seq + -problem.seq % parts
    holder = torch.empty(seq, dtype=torch.int64)
    for rank in range(size):
        for chunk in chunks_of(rank, size, seq, sharding):
            holder[slice(*chunk)] = rank
    segment_lengths, dilation_rates = zip(*problem.branches, strict=True)
    pattern = DilatedPattern(segment_lengths, dilation_rates, problem.heads, num_kv_heads=problem.kv_heads)
    expected = torch.zeros(size, size, dtype=torch.int64)
    for rank in range(size):
        for branch in pattern.remote_keys(rank, size, seq, sharding, problem.is_causal):
            for positions in branch:
                expected[:, rank] += holder[positions].bincount(minlength=size)
    traffic = ring_traffic(
        *(config_of(problem, sharding=sharding), problem.seq, problem.heads, problem.kv_heads),
        *(problem.head_dim, torch.bfloat16, size, problem.is_causal),
    )
    assert traffic.dtype == torch.int64
    torch.testing.assert_close(traffic, expected * 2 * problem.head_dim * 2, rtol=0, atol=0)


def sent_by_rank(
    group, config: RingAttentionConfig, seq: int, heads: tuple[int, int], dtype, is_causal: bool
) -> tuple[list[int], list[int]]:
    """Bytes that this rank sends to each other one, forward and backward, without the headers."""
    posted: list[list[int]] = []
    genuine = dist.batch_isend_irecv

    def counting(ops):
        for op in ops:
            if op.op is dist.isend and op.tensor.dtype is not torch.uint8:
                posted[-1][op.group_peer] += op.tensor.nbytes
        return genuine(ops)

    whole = (torch.randn(1, seq, number, 4, dtype=dtype) for number in (heads[0], heads[1], heads[1]))
    q, k, v = (shard_sequence(x, group.rank(), group.size(), config.sharding)[0] for x in whole)
    dist.batch_isend_irecv = counting
    try:
        posted.append([0] * group.size())
        out = RingDilatedAttention(config, group)(q, k.requires_grad_(), v.requires_grad_(), is_causal)
        posted.append([0] * group.size())
        out.sum().backward()
    finally:
        dist.batch_isend_irecv = genuine
    return posted[0], posted[1]


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("size", "sharding", "branches", "seq", "heads", "dtype"),
    [
        (2, "contiguous", ((64, 1),), 64, (1, 1), torch.float32),
        (3, "zigzag", ((7, 1), (20, 3)), 50, (4, 2), torch.bfloat16),
        (4, "contiguous", ((16, 1), (32, 2), (64, 4)), 64, (8, 2), torch.bfloat16),
        (4, "zigzag", ((8, 1), (64, 4)), 64, (4, 4), torch.float32),
        (4, "contiguous", ((16, 1),), 64, (2, 1), torch.float32),
    ],
)
def test_traffic_is_what_is_sent(
    world: Worlds,
    size: int,
    sharding: str,
    branches,
    seq: int,
    heads: tuple[int, int],
    dtype,
    is_causal: bool,
):
    segment_lengths, dilation_rates = zip(*branches, strict=True)
    config = RingAttentionConfig(
        segment_lengths=segment_lengths, dilation_rates=dilation_rates, sharding=sharding
    )
    traffic = ring_traffic(config, seq, *heads, 4, dtype, size, is_causal)
    sent = world(size).results(sent_by_rank, config, seq, heads, dtype, is_causal)
    assert [forward for forward, _ in sent] == traffic.tolist()
    gradients = traffic.T * 4 // dtype.itemsize  # float32
    assert [backward for _, backward in sent] == (traffic + gradients).tolist()


def busiest(traffic: Tensor, hosts: str) -> int:
    """The most in one direction between hosts a and b, by place in the ring."""
    from_a = torch.tensor([host == "a" for host in hosts])
    return int(max(traffic[from_a][:, ~from_a].sum(), traffic[~from_a][:, from_a].sum()))


def test_the_order_of_hosts_decides_what_crosses_between_them():
    """Positions of one head: keys and values of one byte each are two bytes."""
    seq = 4 * 8192

    def crossing(config: RingAttentionConfig, is_causal: bool) -> dict[str, int]:
        traffic = ring_traffic(config, seq, 1, 1, 1, torch.int8, 4, is_causal) // 2
        return {hosts: busiest(traffic, hosts) for hosts in ("abba", "abab", "aabb")}

    over_all = RingAttentionConfig(segment_lengths=[seq], dilation_rates=[1])
    assert crossing(over_all, True) == {"abba": 16384, "abab": 24576, "aabb": 32768}
    assert len(set(crossing(over_all, False).values())) == 1
    of_two_shards = RingAttentionConfig(segment_lengths=[seq // 2], dilation_rates=[1])
    assert crossing(of_two_shards, False) == {"abba": 16384, "abab": 16384, "aabb": 0}


def in_order(group, order, function, *arguments):
    """``function`` in a group whose ranks have this order."""
    return function(dist.new_group(order, sort_ranks=False), *arguments)


@can_order
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_results_are_the_same_in_any_order(world: Worlds, sharding: str):
    """To the bit: only who holds which shard changes."""
    problem = Problem(2, 48, 4, 2, 8, ((12, 1), (24, 2), (48, 4)), True, False, "none", "contiguous", 0)
    options = {"sharding": sharding}
    expected = world(4).results(ring_rank, problem, torch.float32, options)[0]
    for order in ((0, 2, 1, 3), (3, 0, 2, 1)):
        for result in world(4).results(in_order, order, ring_rank, problem, torch.float32, options):
            torch.testing.assert_close(result, expected, rtol=0, atol=0)


@can_order
def test_a_good_order_sends_less_between_hosts(world: Worlds):
    """On hosts a b a b, ranks 0 2 1 3 in a ring whose segments are of two shards."""
    config = RingAttentionConfig(segment_lengths=[32], dilation_rates=[1])
    arguments = (config, 64, (2, 2), torch.float32, True)

    def crossing(order: tuple[int, ...]) -> int:
        answers = world(4).results(in_order, order, sent_by_rank, *arguments)
        forward = [answers[rank][0] for rank in order]  # by rank in the ring
        return busiest(torch.tensor(forward), "".join("abab"[rank] for rank in order))

    assert crossing((0, 2, 1, 3)) == 0
    assert min(crossing(order) for order in permutations(range(4)) if order[:2] in ((0, 1), (0, 3))) > 0


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"seq": -1}, ValueError, "seq must be at least 0, got -1"),
        ({"world_size": 0}, ValueError, "world_size must be at least 1, got 0"),
        ({"head_dim": 2.0}, TypeError, "head_dim must be int, got 2.0"),
        ({"num_kv_heads": 3}, ValueError, "num_heads must be a positive multiple of num_kv_heads"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_no_ring(changed: dict[str, object], error: type[Exception], told: str):
    arguments = {"seq": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 2, "world_size": 2} | changed
    config = RingAttentionConfig(segment_lengths=[8], dilation_rates=[1])
    with pytest.raises(error, match=told):
        ring_traffic(config, dtype=torch.float32, is_causal=True, **arguments)  # type: ignore[arg-type]
