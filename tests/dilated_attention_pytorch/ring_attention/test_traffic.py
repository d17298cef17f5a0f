"""What travels is what the definition says, to the element and the message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem
from ring_problem import config_of, ring_problems
from worlds import World

from dilated_attention_pytorch import DilatedPattern
from dilated_attention_pytorch.core.sharding import chunks_of
from dilated_attention_pytorch.ring_attention import RingDilatedAttention
from dilated_attention_pytorch.ring_attention.computation import SdpaKernels
from dilated_attention_pytorch.ring_attention.schedule import blocks_between

Worlds = Callable[[int], World]
SHARDINGS = ("contiguous", "zigzag")


def pattern_of(problem: Problem) -> DilatedPattern:
    segment_lengths, dilation_rates = zip(*problem.branches, strict=True)
    return DilatedPattern(segment_lengths, dilation_rates, problem.heads, num_kv_heads=problem.kv_heads)


def brute_force_keys(
    problem: Problem, rank: int, size: int, seq: int, sharding: str
) -> list[list[list[int]]]:
    """The definition of DESIGN: by branch and key/value head, position by position."""
    held = {p for chunk in chunks_of(rank, size, seq, sharding) for p in range(*chunk)}
    group = problem.heads // problem.kv_heads
    result = []
    for w, r in problem.branches:
        queries: dict[int, list[int]] = {}
        for p in held:
            queries.setdefault(p // w, []).append(p)
        result.append(
            [
                [
                    p
                    for p in range(seq)
                    if p not in held
                    and p // w in queries
                    and (p % w) % r in {j % r for j in range(c * group, (c + 1) * group)}
                    and not (problem.is_causal and p > max(queries[p // w]))
                ]
                for c in range(problem.kv_heads)
            ]
        )
    return result


@settings(max_examples=150)
@given(problem=ring_problems, size=st.integers(1, 5), sharding=st.sampled_from(SHARDINGS))
def test_remote_keys_are_those_of_the_definition(problem: Problem, size: int, sharding: str):
    for rank in range(size):
        keys = pattern_of(problem).remote_keys(rank, size, problem.seq, sharding, problem.is_causal)
        got = [[head.tolist() for head in branch] for branch in keys]
        assert got == brute_force_keys(problem, rank, size, problem.seq, sharding)


@settings(max_examples=150)
@given(problem=ring_problems, size=st.integers(1, 5), sharding=st.sampled_from(SHARDINGS))
def test_blocks_hold_the_remote_keys(problem: Problem, size: int, sharding: str):
    """Every one, once, by branch and head: the schedule is computed otherwise than the definition."""
    chunks = [chunks_of(rank, size, problem.seq, sharding) for rank in range(size)]
    held = [[p for chunk in mine for p in range(*chunk)] for mine in chunks]
    group = problem.heads // problem.kv_heads
    for user in range(size):
        expected = pattern_of(problem).remote_keys(user, size, problem.seq, sharding, problem.is_causal)
        for number, branch in enumerate(problem.branches):
            got: list[list[int]] = [[] for _ in range(problem.kv_heads)]
            for owner in range(size):
                if owner == user:
                    continue
                blocks = blocks_between(
                    chunks[owner],
                    chunks[user],
                    [branch],
                    num_heads=problem.heads,
                    group=group,
                    is_causal=problem.is_causal,
                )
                for block in blocks:
                    tile = block.keys
                    rows = range(tile.start, tile.start + tile.length)[tile.offset :: tile.rate]
                    assert len(rows) == block.num_rows
                    for head in range(problem.kv_heads)[tile.heads.kv]:
                        got[head] += [held[owner][row] for row in rows]
            assert [sorted(x) for x in got] == [x.tolist() for x in expected[number]]


def counted_rank(group, problem, sharding, padded):
    """Messages and bytes that a rank posted: forward, then backward, without the headers."""
    posted: list[Counter] = []
    genuine = dist.batch_isend_irecv

    def counting(ops):
        for op in ops:
            kind = "send" if op.op is dist.isend else "receive"
            posted[-1][kind, op.tensor.dtype, "messages"] += 1
            posted[-1][kind, op.tensor.dtype, "elements"] += op.tensor.numel()
        return genuine(ops)

    rows = problem.seq // group.size()
    q, k, v = (
        torch.randn(problem.batch, rows, heads, problem.head_dim, requires_grad=True)
        for heads in (problem.heads, problem.kv_heads, problem.kv_heads)
    )
    mask = torch.full((problem.batch, rows), group.rank() == 1) if padded else None
    dist.batch_isend_irecv = counting
    try:
        posted.append(Counter())
        ring = RingDilatedAttention(config_of(problem, sharding=sharding), group)
        out = ring(q.bfloat16(), k.bfloat16(), v.bfloat16(), problem.is_causal, mask)
        posted.append(Counter())
        out.sum().backward()
    finally:
        dist.batch_isend_irecv = genuine
    return posted


TRAFFIC = Problem(2, 48, 4, 2, 8, ((6, 1), (20, 2), (48, 4)), False, False, "none", "contiguous", 0)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_messages_and_bytes(world: Worlds, size: int, sharding: str, is_causal: bool, padded: bool):
    problem = replace(TRAFFIC, is_causal=is_causal)
    counts = world(size).results(counted_rank, problem, sharding, padded)
    pattern = pattern_of(problem)
    in_all: Counter = Counter()
    for rank, (forward, backward) in enumerate(counts):
        keys = pattern.remote_keys(rank, size, problem.seq, sharding, is_causal)
        elements = 2 * problem.batch * problem.head_dim * sum(len(head) for branch in keys for head in branch)
        assert forward["receive", torch.bfloat16, "elements"] == elements
        # The same again, and gradients in float32 for what others used of this rank's.
        assert backward["receive", torch.bfloat16, "elements"] == elements
        assert backward["send", torch.float32, "elements"] == elements
        assert forward["receive", torch.bfloat16, "messages"] <= size - 1
        for passed in (forward, backward):  # the headers
            assert passed["receive", torch.uint8, "elements"] == (size - 1) * 1024
        assert (forward["receive", torch.bool, "elements"] > 0) == (padded and elements > 0)
        in_all.update(forward)
    for dtype in (torch.bfloat16, torch.uint8, torch.bool):
        for what in ("messages", "elements"):
            assert in_all["send", dtype, what] == in_all["receive", dtype, what]


def test_local_segments_send_nothing(world: Worlds):
    problem = replace(TRAFFIC, branches=((6, 1), (12, 3)))
    for forward, backward in world(4).results(counted_rank, problem, "contiguous", False):
        assert {key[1] for key in (*forward, *backward)} == {torch.uint8}  # the headers


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_bytes_when_everything_divides(kv_heads: int):
    """(w - S) / r * min(g, r) * kv_heads positions a rank: bounded by the segment, not by the sequence."""
    heads, w, r, size = 8, 256, 4, 8
    for seq in (1024, 4096):
        shard = seq // size
        pattern = DilatedPattern((w,), (r,), heads, num_kv_heads=kv_heads)
        keys = pattern.remote_keys(3, size, seq)
        expected = max(0, w - shard) // r * min(heads // kv_heads, r) * kv_heads
        assert sum(len(head) for branch in keys for head in branch) == expected


def test_zigzag_shares_causal_work_evenly():
    """Equal within 1 % where w divides seq and is a multiple of seq / 2P."""
    seq = 4096
    for size in (2, 3, 4, 8):
        chunk = seq // (2 * size)
        for parts in range(1, 2 * size + 1):
            w = parts * chunk
            if seq % w or seq % (2 * size):
                continue
            for r in (1, 2, 4):
                pattern = DilatedPattern((w,), (r,), 4)
                work = work_of(pattern, size, seq, "zigzag")
                assert max(work) <= 1.01 * min(work), (size, w, r, work)
                assert sum(work) == pattern.flops(1, seq, 8, is_causal=True)


def test_zigzag_can_lose():
    pattern = DilatedPattern((3072,), (1,), 1)
    contiguous, zigzag = (work_of(pattern, 2, 4096, sharding) for sharding in SHARDINGS)
    assert max(zigzag) / min(zigzag) == pytest.approx(3.99, abs=0.01)
    assert max(contiguous) / min(contiguous) == pytest.approx(1.50, abs=0.01)


def work_of(pattern: DilatedPattern, size: int, seq: int, sharding: str) -> list[int]:
    shards = [
        torch.cat([torch.arange(*chunk) for chunk in chunks_of(rank, size, seq, sharding)])
        for rank in range(size)
    ]
    return [pattern.flops(1, seq, 8, is_causal=True, query_positions=shard) for shard in shards]


def ordered_rank(group, problem, overlap):
    """What a rank does, in order: forward, then backward."""
    from dilated_attention_pytorch.ring_attention import function

    events: list[str] = []

    def noting(name, genuine):
        def call(*args, **kwargs):
            events.append(name)
            return genuine(*args, **kwargs)

        return call

    class NotedPending(function.Pending):
        def __init__(self, *args):
            events.append("post")
            super().__init__(*args)

        def wait(self):
            events.append("wait")
            super().wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, "Pending", NotedPending)
        for holder, name in (
            (function, "own_forward"),
            (function, "own_backward"),
            (SdpaKernels, "absorb"),
            (SdpaKernels, "absorb_backward"),
        ):
            patch.setattr(holder, name, noting(name, getattr(holder, name)))
        q, k, v = (torch.randn(1, 8, 2, 4, requires_grad=True) for _ in range(3))
        ring = RingDilatedAttention(config_of(problem, overlap_communication=overlap), group)
        out = ring(q, k, v)
        forward = events.copy()
        events.clear()
        out.sum().backward()
    return forward, events


def test_the_next_hop_is_under_way_while_one_computes(world: Worlds):
    problem = replace(TRAFFIC, heads=2, kv_heads=2, branches=((24, 1),))
    for forward, backward in world(3).results(ordered_rank, problem, True):
        assert forward == ["post", "own_forward", "wait", "post", "absorb", "wait", "absorb"]
        assert backward == [
            *("post", "own_backward"),
            *("wait", "post", "absorb_backward", "post"),  # the gradients of hop 1 go home
            *("wait", "absorb_backward", "wait", "post", "wait"),
        ]
    for forward, _ in world(3).results(ordered_rank, problem, False):
        assert forward == ["own_forward", "post", "wait", "absorb", "post", "wait", "absorb"]
