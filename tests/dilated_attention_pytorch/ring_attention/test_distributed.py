"""A device mesh: the ring alone, and the ring with the heads divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import Problem
from ring_problem import config_of, exact, mask_of, ring_problems
from torch.distributed import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from worlds import World

from dilated_attention_pytorch.ring_attention import (
    RingDistributedDilatedAttention,
    shard_sequence,
    unshard_sequence,
)
from dilated_attention_pytorch.ring_attention.utils.communication import RingError

Worlds = Callable[[int], World]
MESHES = {
    (2,): "ring of 2",
    (4,): "ring of 4",
    (1, 2): "1 x 2",
    (2, 1): "2 x 1",
    (2, 2): "2 x 2",
    (1, 4): "1 x 4",
}
PLAIN = Problem(1, 24, 8, 4, 8, ((4, 1), (8, 2), (24, 4)), True, True, "none", "contiguous", 0)


def mesh_of(shape):
    """A device mesh lives as long as its process: build each once."""
    if shape not in _meshes:
        _meshes[shape] = init_device_mesh("cpu", shape, mesh_dim_names=("ring", "heads")[: len(shape)])
    return _meshes[shape]


_meshes: dict = {}


def mesh_rank(group, shape, problem, sharding, count=False):
    mesh = mesh_of(shape)
    ring, heads = mesh.size(0), mesh.size(1) if mesh.ndim == 2 else 1
    outer, inner = mesh.get_local_rank(0), mesh.get_local_rank(1) if mesh.ndim == 2 else 0
    padded = torch.nn.functional.pad(mask_of(problem), (0, -problem.seq % (2 * ring * heads)), value=True)

    def cut(x):
        """Part ``inner`` of ring shard ``outer``."""
        x = torch.cat([x, x.new_zeros(len(x), padded.shape[1] - x.shape[1], *x.shape[2:])], 1)
        return shard_sequence(x, outer, ring, sharding)[0].chunk(heads, 1)[inner]

    *inputs, grad = (cut(x.detach()) for x in problem.tensors(torch.float64))
    inputs = [x.requires_grad_() for x in inputs]
    mask = shard_sequence(padded, outer, ring, sharding)[0].chunk(heads, 1)[inner]
    attention = RingDistributedDilatedAttention(config_of(problem, sharding=sharding), mesh)
    if count:
        with CommDebugMode() as counter, torch.no_grad():
            attention(*inputs, problem.is_causal, mask)
        return {str(op): number for op, number in counter.get_comm_counts().items()}
    out, lse = attention(*inputs, problem.is_causal, mask, return_lse=True)
    grads = torch.autograd.grad(out, inputs, grad)
    whole = [unshard_sequence(x, group) for x in (out, *grads, lse.transpose(1, 2))]  # by rank: outer, inner
    rows = [torch.arange(padded.shape[1])]
    order = torch.cat([shard_sequence(rows[0][None], i, ring, sharding)[0][0] for i in range(ring)]).argsort()
    *whole, lse = [x[:, order][:, : problem.seq] for x in whole]
    return [*whole, lse.transpose(1, 2)]


mesh_problems = ring_problems.map(
    lambda problem: replace(problem, heads=4 * problem.heads, kv_heads=4 * problem.kv_heads)
)


@pytest.mark.parametrize("shape", MESHES, ids=MESHES.get)
@settings(max_examples=20)
@given(problem=mesh_problems, sharding=st.sampled_from(("contiguous", "zigzag")))
@example(problem=PLAIN, sharding="zigzag")
def test_mesh_equals_the_oracle(world: Worlds, shape: tuple[int, ...], problem: Problem, sharding: str):
    expected = exact(problem)
    for got in world(torch.Size(shape).numel()).results(mesh_rank, shape, problem, sharding):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_collectives_of_a_forward(world: Worlds):
    """Query, key, value and output, each in one all-to-all; the padding mask in one more."""
    for problem, number in ((replace(PLAIN, padded=False), 4), (PLAIN, 5)):
        counts = world(4).results(mesh_rank, (2, 2), problem, "contiguous", True)
        assert counts == [{"c10d.alltoall_base_": number}] * 4


def refused_rank(group, shape, heads, kv_heads, ring_size):
    config = config_of(PLAIN, ring_size=ring_size)
    q, k, v = (torch.randn(1, 6, n, 4) for n in (heads, kv_heads, kv_heads))
    RingDistributedDilatedAttention(config, mesh_of(shape))(q, k, v)


@pytest.mark.parametrize(
    ("shape", "heads", "kv_heads", "ring_size", "message"),
    [
        (
            (2, 2),
            3,
            1,
            None,
            "query heads must be a multiple of the mesh's second dimension, got 3 heads for 2",
        ),
        (
            (2, 2),
            4,
            1,
            None,
            "key/value heads must be a multiple of the mesh's second dimension, got 1 heads",
        ),
        (
            (2, 2),
            4,
            2,
            4,
            "ring_size must be the size of the mesh's first dimension or None, got config.ring_size=4",
        ),
        ((1, 2, 2), 4, 2, None, "device_mesh must have 1 or 2 dimensions, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(world: Worlds, shape, heads, kv_heads, ring_size, message: str):
    if len(shape) == 3:
        answers = world(4).run(refused_3d_rank)
    else:
        answers = world(4).run(refused_rank, shape, heads, kv_heads, ring_size)
    assert all(type(x) is ValueError and message in str(x) for x in answers), answers


def refused_3d_rank(group):
    RingDistributedDilatedAttention(config_of(PLAIN), init_device_mesh("cpu", (1, 2, 2)))


def wrong_flag_rank(group):
    q, k, v = (torch.randn(1, 6, 4, 4) for _ in range(3))
    RingDistributedDilatedAttention(config_of(PLAIN), mesh_of((2, 2)))(q, k, v, is_causal="no")


def test_a_flag_that_is_no_bool_is_refused(world: Worlds):
    answers = world(4).run(wrong_flag_rank)
    assert [(type(x), str(x)) for x in answers] == [(TypeError, "is_causal must be bool, got 'no'")] * 4


def differing_rank(group, option):
    q, k, v = (torch.randn(1, 6, 4, 4) for _ in range(3))
    ring = RingDistributedDilatedAttention(config_of(PLAIN), mesh_of((2, 2)))
    ring(q, k, v, **{option: group.rank() == 1})


@pytest.mark.parametrize("option", ["is_causal", "return_lse"])
def test_a_rank_that_disagrees_in_its_row_is_told_to_the_other_rows(world: Worlds, option: str):
    answers = world(4).run(differing_rank, option)
    assert all(isinstance(x, RingError) and f"{option} is " in str(x) for x in answers), answers
