"""The ring gives the numbers of one device: every world size, every pattern, outputs and all gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import Problem
from ring_problem import config_of, exact, mask_of, ring, ring_problems, ring_rank, tensors_of
from worlds import World

from dilated_attention_pytorch import dilated_attention, hilbert_order
from dilated_attention_pytorch.ring_attention import (
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    shard_sequence,
    unshard_sequence,
)
from dilated_attention_pytorch.ring_attention.utils.communication import RingError

Worlds = Callable[[int], World]
SIZES = (1, 2, 3, 4)
SHARDINGS = ("contiguous", "zigzag")
PLAIN = Problem(1, 24, 4, 4, 8, ((4, 1), (8, 2), (24, 4)), True, False, "none", "contiguous", 0)


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=40)
@given(problem=ring_problems, sharding=st.sampled_from(SHARDINGS), overlap=st.booleans())
@example(problem=PLAIN, sharding="zigzag", overlap=True)
def test_ring_equals_the_oracle(world: Worlds, size: int, problem: Problem, sharding: str, overlap: bool):
    got = ring(world(size), problem, sharding=sharding, overlap_communication=overlap)
    torch.testing.assert_close(got, exact(problem), rtol=0, atol=1e-10)


PATTERNS = {
    "local segments": ((3, 1), (6, 2)),
    "longer than a shard": ((24, 1), (12, 3)),
    "straddling a border": ((10, 1), (9, 2)),
    "dividing nothing": ((7, 2), (11, 3)),
    "longer than the sequence": ((100, 2), (31, 1)),
    "served by few": ((16, 8),),
}


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(world: Worlds, size: int, sharding: str, is_causal: bool, name: str):
    problem = Problem(2, 24, 4, 2, 8, PATTERNS[name], is_causal, True, "none", "contiguous", 1)
    got = ring(world(size), problem, sharding=sharding)
    torch.testing.assert_close(got, exact(problem), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("seq", [1, 2, 5, 23])
def test_sequences_that_the_world_does_not_divide(world: Worlds, sharding: str, seq: int):
    problem = replace(PLAIN, seq=seq)
    got = ring(world(4), problem, sharding=sharding)
    torch.testing.assert_close(got, exact(problem), rtol=0, atol=1e-10)


def test_numbers_do_not_depend_on_the_world_size(world: Worlds):
    problem = replace(PLAIN, batch=2, seq=48, branches=((16, 1), (48, 2)), padded=True)
    one = ring(world(1), problem)
    for size in SIZES[1:]:
        for sharding in SHARDINGS:
            torch.testing.assert_close(ring(world(size), problem, sharding=sharding), one, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_bfloat16_loses_no_more_on_four_ranks(world: Worlds, sharding: str):
    problem = Problem(1, 512, 4, 4, 16, ((64, 1), (256, 2), (512, 4)), True, False, "none", "contiguous", 3)
    expected = exact(problem, torch.bfloat16)

    def errors(size: int) -> list[float]:
        got = ring(world(size), problem, torch.bfloat16, sharding=sharding)
        return [((x.double() - y).norm() / y.norm()).item() for x, y in zip(got, expected, strict=True)]

    for one, four in zip(errors(1), errors(4), strict=True):
        assert four <= 1.5 * one


# What public implementations get wrong, one test each.


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_causal_mask_has_the_offset_of_the_rank(world: Worlds, sharding: str):
    """A mask built from local indices would let rank 1 see its future and hide its past."""
    problem = replace(PLAIN, branches=((24, 1),))
    whole, *_ = exact(problem)
    torch.testing.assert_close(ring(world(3), problem, sharding=sharding)[0], whole, rtol=0, atol=1e-10)


def test_own_keys_count_on_every_rank(world: Worlds):
    """With one token a segment every query sees its own key only."""
    problem = replace(PLAIN, branches=((1, 1),), is_causal=False)
    got, *_ = ring(world(4), problem)
    torch.testing.assert_close(got, problem.tensors(torch.float64)[2].detach(), rtol=0, atol=1e-14)


def test_keys_and_values_travel_in_buffers_of_their_own(world: Worlds):
    """Values of ones give ones whatever the keys are; one buffer for both would give keys."""
    got = world(3).results(_ones_rank, config_of(replace(PLAIN, branches=((24, 1),))))
    for out in got:
        torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-14)


def _ones_rank(group, config):
    q, k = (torch.randn(1, 8, 2, 4, dtype=torch.float64) for _ in range(2))
    return RingDilatedAttention(config, group)(q, k, torch.ones_like(k))


def test_gradients_of_remote_keys_come_home(world: Worlds):
    """The loss of the last rank alone reaches the keys of all."""
    problem = replace(PLAIN, branches=((24, 1),))
    grads = world(4).results(_last_loss_rank, problem)
    q, k, v, _ = problem.tensors(torch.float64)
    out = dilated_attention(q, k, v, [24], [1], is_causal=True)
    expected = torch.autograd.grad(out[:, 18:].sum(), (k, v))
    for i in range(2):
        got = torch.cat([grad[i] for grad in grads], 1)
        assert all(grad[i].abs().sum() > 0 for grad in grads)
        torch.testing.assert_close(got, expected[i], rtol=0, atol=1e-12)


def _last_loss_rank(group, problem):
    q, k, v, _ = (x.detach().chunk(group.size(), 1)[group.rank()] for x in problem.tensors(torch.float64))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = RingDilatedAttention(config_of(problem), group)(q, k, v, True)
    weight = float(group.rank() == group.size() - 1)
    return torch.autograd.grad(out.sum() * weight, (k, v))


def test_segments_do_not_restart_at_a_rank(world: Worlds):
    """Segments of 16 on shards of 6: their borders are those of the whole sequence."""
    problem = replace(PLAIN, branches=((16, 1), (10, 3)), is_causal=False)
    torch.testing.assert_close(ring(world(4), problem), exact(problem), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_later_token_changes_nothing_earlier(world: Worlds, sharding: str):
    """Bit for bit, whichever ranks hold the two."""
    problem = replace(PLAIN, seq=24, branches=((8, 1), (24, 2)))
    outs = [world(4).results(_changed_token_rank, problem, sharding, change)[0] for change in (0.0, 100.0)]
    assert torch.equal(outs[0][:, :13], outs[1][:, :13])
    assert not torch.equal(outs[0][:, 13:], outs[1][:, 13:])


def _changed_token_rank(group, problem, sharding, change):
    q, k, v, _ = (x.detach() for x in problem.tensors(torch.float64))
    for x in (q, k, v):
        x[:, 13:] += change
    q, k, v = (shard_sequence(x, group.rank(), group.size(), sharding)[0] for x in (q, k, v))
    out = RingDilatedAttention(config_of(problem, sharding=sharding), group)(q, k, v, True)
    return unshard_sequence(out, group, sharding)


@pytest.mark.parametrize("strategy", ["simple", "bucketed", "fragment_aware", "numa", "adaptive"])
def test_buffers_of_messages_come_from_the_pool_and_go_back(world: Worlds, strategy: str):
    for errors, stats in world(3).results(pooled_rank, replace(PLAIN, padded=True), strategy):
        assert errors == [0.0] * 4
        assert stats["buffers_lent"] == stats["forgotten"] == 0
        assert stats["hits"] > 0


def pooled_rank(group, problem, strategy):
    """Differences to what the allocator's memory gives, in the third of three passes, and statistics."""
    q, k, v, grad = (x.detach().chunk(group.size(), 1)[group.rank()] for x in problem.tensors(torch.float64))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    mask = mask_of(problem).chunk(group.size(), 1)[group.rank()]
    pooled = RingDilatedAttention(config_of(problem, memory_pool_strategy=strategy), group)
    plain = RingDilatedAttention(config_of(problem), group)
    results = []
    for attention in (pooled, pooled, pooled, plain):
        out = attention(q, k, v, True, mask)
        results.append([out, *torch.autograd.grad(out, (q, k, v), grad)])
    errors = [float((x - y).abs().max()) for x, y in zip(results[2], results[3], strict=True)]
    return errors, pooled.memory_pool.get_stats()


GARBAGE = {"nan": math.nan, "inf": math.inf, "large": 3e38}
PADDED = Problem(2, 24, 4, 2, 8, ((6, 1), (16, 2), (24, 3)), True, True, "none", "contiguous", 5)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_ignored_keys_hold_reaches_no_rank(world: Worlds, garbage: str, is_causal: bool, sharding: str):
    problem = replace(PADDED, is_causal=is_causal)
    options = {"sharding": sharding}
    expected = [x.float() for x in exact(problem, torch.float32)]
    for got in world(2).results(ring_rank, problem, torch.float32, options, GARBAGE[garbage]):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("along_a_curve", [False, True], ids=["", "curve"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_ignored_keys_hold_reaches_no_block(garbage: str, along_a_curve: bool):
    grid = (4, 6) if along_a_curve else None
    ring = RingDilatedAttentionHilbert(config_of(PADDED, ring_size=2), grid_shape=grid)
    ordered = [ring.apply_hilbert_ordering(x) for x in tensors_of(PADDED, torch.float32, GARBAGE[garbage])]
    q, k, v = (x.requires_grad_() for x in ordered[:3])
    out, lse = ring(q, k, v, True, ring.apply_hilbert_ordering(mask_of(PADDED)), True)
    grads = torch.autograd.grad(out, (q, k, v), ordered[3])
    got = [ring.apply_hilbert_ordering(x, inverse=True) for x in (out, *grads)]
    got.append(ring.apply_hilbert_ordering(lse, inverse=True, dim=2))
    positions = None if grid is None else hilbert_order(grid).argsort()
    expected = [x.float() for x in exact(PADDED, torch.float32, positions)]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


# Without a process group.


@settings(max_examples=60)
@given(problem=ring_problems, blocks=st.integers(1, 5))
@example(problem=PLAIN, blocks=3)
def test_key_blocks_merged_on_one_device(problem: Problem, blocks: int):
    q, k, v, grad = problem.tensors(torch.float64)
    ring = RingDilatedAttention(config_of(problem, ring_size=blocks))
    out, lse = ring(q, k, v, problem.is_causal, mask_of(problem), return_lse=True)
    grads = torch.autograd.grad(out, (q, k, v), grad)
    torch.testing.assert_close([out, *grads, lse], exact(problem), rtol=0, atol=1e-10)


def test_without_a_group_it_is_the_operator_of_one_device():
    q, k, v, _ = PLAIN.tensors(torch.float32)
    ring = RingDilatedAttention(config_of(PLAIN))
    expected = dilated_attention(q, k, v, [4, 8, 24], [1, 2, 4], is_causal=True, return_lse=True)
    assert torch.equal(ring(q, k, v, is_causal=True), expected[0])
    got = ring(q, k, v, is_causal=True, return_lse=True)
    assert all(x.equal(y) for x, y in zip(got, expected, strict=True))


# The compiler means to hide it, which does not work where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_key_blocks_are_left_out_of_a_compiled_graph():
    """Each branch of three, unrolled over blocks and tiles, took minutes to compile."""
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    problem = replace(PLAIN, seq=20)
    ring = RingDilatedAttention(config_of(problem, ring_size=2))
    q, k, v, grad = problem.tensors(torch.float64)
    out = torch.compile(ring, backend=counting)(q, k, v, is_causal=True)
    grads = torch.autograd.grad(out, (q, k, v), grad)
    torch.testing.assert_close([out, *grads], exact(problem)[:4], rtol=0, atol=1e-10)
    assert sum(graphs) < 20


def test_double_backward_raises(world: Worlds):
    message = "dilated attention around a ring cannot be differentiated twice (create_graph=True)"
    answers = world(2).run(_double_backward_rank, PLAIN)
    assert [(type(x), str(x)) for x in answers] == [(RuntimeError, message)] * 2


def _double_backward_rank(group, problem):
    q, k, v, _ = (x.detach()[:, :12].requires_grad_() for x in problem.tensors(torch.float64))
    out = RingDilatedAttention(config_of(problem), group)(q, k, v)
    torch.autograd.grad(out.sum(), q, create_graph=True)


def test_group_of_another_size_is_refused(world: Worlds):
    answers = world(2).run(_wrong_size_rank)
    message = "ring_size must be the size of process_group or None, got ring_size=3 for a group of 2"
    assert [(type(x), str(x)) for x in answers] == [(ValueError, message)] * 2


def _wrong_size_rank(group):
    RingDilatedAttention(config_of(PLAIN, ring_size=3), group)


# Along a Hilbert curve.

GRIDS = ((4, 6), (5, 7), (3, 3, 4))


def hilbert_rank(group, grid, problem, sharding):
    """On one rank: out, gradients and lse in row-major order, put together with the others'."""
    attention = RingDilatedAttentionHilbert(config_of(problem, sharding=sharding), group, grid)
    tensors = [attention.apply_hilbert_ordering(x.detach()) for x in problem.tensors(torch.float64)]
    shards = [shard_sequence(x, group.rank(), group.size(), sharding) for x in tensors]
    q, k, v = (shard.requires_grad_() for shard, _ in shards[:3])
    out, lse = attention(q, k, v, problem.is_causal, shards[0][1], return_lse=True)
    grads = torch.autograd.grad(out, (q, k, v), shards[3][0])
    whole = [unshard_sequence(x, group, sharding, problem.seq) for x in (out, *grads)]
    lse = unshard_sequence(lse, group, sharding, problem.seq, dim=2)
    in_rows = [attention.apply_hilbert_ordering(x, inverse=True) for x in whole]
    return [*in_rows, attention.apply_hilbert_ordering(lse, inverse=True, dim=2)]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_causality_along_a_curve_is_by_position(
    world: Worlds, size: int, sharding: str, is_causal: bool, grid: tuple[int, ...]
):
    seq = math.prod(grid)
    problem = replace(PLAIN, seq=seq, kv_heads=2, branches=((5, 1), (16, 2), (100, 3)), is_causal=is_causal)
    rank_on_curve = hilbert_order(grid).argsort()
    expected = exact(problem, positions=rank_on_curve)
    for got in world(size).results(hilbert_rank, grid, problem, sharding):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_ranks_with_other_grids_find_out(world: Worlds):
    answers = world(2).run(other_grid_rank)
    assert all(type(x) is RingError for x in answers)
    assert "grid_shape is [4, 6] on rank 0 and [6, 4] on rank 1" in str(answers[0])


def other_grid_rank(group):
    attention = RingDilatedAttentionHilbert(config_of(PLAIN), group, (4, 6) if group.rank() == 0 else (6, 4))
    attention(*(torch.randn(1, 12, 4, 8) for _ in range(3)))
