from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import World

from dilated_attention_pytorch.ring_attention import shard_sequence, unshard_sequence
from dilated_attention_pytorch.ring_attention.utils.communication import RingError

Worlds = Callable[[int], World]


def test_layouts():
    x = torch.arange(8)[None]
    assert [shard_sequence(x, i, 2)[0].tolist() for i in range(2)] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    zigzag = [shard_sequence(x, i, 2, "zigzag")[0].tolist() for i in range(2)]
    assert zigzag == [[[0, 1, 6, 7]], [[2, 3, 4, 5]]]


@settings(max_examples=200)
@given(
    seq=st.integers(0, 20),
    size=st.integers(1, 5),
    sharding=st.sampled_from(("contiguous", "zigzag")),
    dim=st.integers(-3, 2),
)
def test_every_position_is_held_once_and_the_rest_is_padding(seq: int, size: int, sharding: str, dim: int):
    shape = [2, 3, 4]
    shape[dim] = seq
    x = 1 + torch.arange(torch.Size(shape).numel()).view(shape)
    shards = [shard_sequence(x, rank, size, sharding, dim) for rank in range(size)]
    assert len({shard.shape for shard, _ in shards}) == 1
    total = 0
    for shard, padding in shards:
        assert padding.dtype == torch.bool
        assert padding.shape == ((shard.shape[dim],) if dim in (0, -3) else (2, shard.shape[dim]))
        alive = ~padding if dim in (0, -3) else ~padding[0]
        total += int(alive.sum())
        kept = shard.movedim(dim, 0)
        assert bool((kept[~alive] == 0).all())
        assert bool((kept[alive] > 0).all())
    assert total == seq
    held = torch.cat([shard.flatten() for shard, _ in shards])
    assert torch.equal(held[held > 0].sort().values, x.flatten())


@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_round_trip(world: Worlds, size: int, sharding: str, dim: int):
    x = torch.randn(11, 11, 11)
    for got in world(size).results(round_trip_rank, x, sharding, dim):
        assert torch.equal(got, x)


@pytest.mark.parametrize("length", [0, 3, None])
def test_a_sequence_cut_short(world: Worlds, length: int | None):
    x = torch.randn(2, 8)
    for got in world(2).results(cut_rank, x, length):
        assert torch.equal(got, x[:, :length])


def cut_rank(group, x, length):
    return unshard_sequence(shard_sequence(x, group.rank(), 2)[0], group, length=length)


def round_trip_rank(group, x, sharding, dim):
    shard, _ = shard_sequence(x, group.rank(), group.size(), sharding, dim)
    return unshard_sequence(shard, group, sharding, x.shape[dim], dim)


def whole_of(shards: list[torch.Tensor], rows: list[list[int]], dim: int, length: int) -> torch.Tensor:
    """The sequence whose row ``rows[i][j]`` is row j of shard i."""
    order = torch.tensor(rows).flatten().argsort()
    return torch.cat(shards, dim).index_select(dim, order[:length])


ROWS = {"contiguous": [[0, 1, 2, 3], [4, 5, 6, 7]], "zigzag": [[0, 1, 6, 7], [2, 3, 4, 5]]}


@pytest.mark.parametrize(("sharding", "dim"), [("contiguous", 1), ("zigzag", 1), ("zigzag", -1)])
def test_gradient_is_that_of_the_sum_of_all_losses(world: Worlds, sharding: str, dim: int):
    shape = (2, 8, 3) if dim == 1 else (2, 3, 8)
    shards = [torch.randn(shape, dtype=torch.float64).narrow(dim, 0, 4) for _ in range(2)]
    weights = [torch.randn(shape, dtype=torch.float64).narrow(dim, 0, 7) for _ in range(2)]
    answers = world(2).results(gradients_rank, shards, weights, sharding, dim)
    exact = [x.clone().requires_grad_() for x in shards]
    whole = whole_of(exact, ROWS[sharding], dim, 7)
    loss = sum((weight * whole**3).sum() for weight in weights)
    first = torch.autograd.grad(loss, exact, create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), exact)
    for rank, got in enumerate(answers):
        torch.testing.assert_close(got[0], whole.detach(), rtol=0, atol=0)
        torch.testing.assert_close(got[1:], [first[rank].detach(), second[rank]], rtol=0, atol=1e-12)


def gradients_rank(group, shards, weights, sharding, dim):
    """The sequence, the first and the second derivative by this rank's shard; each rank has a loss."""
    shard = shards[group.rank()].requires_grad_()
    whole = unshard_sequence(shard, group, sharding, 7, dim)
    loss = (weights[group.rank()] * whole**3).sum()
    (first,) = torch.autograd.grad(loss, shard, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), shard)
    return [x.detach() for x in (whole, first, second)]


def test_bfloat16_gradients_are_added_up_in_float32(world: Worlds):
    """1 from three ranks and 256 from one: added in bfloat16 one after the other, 256 stays 256."""
    for got in world(4).results(sum_rank):
        assert got.tolist() == [[260.0] * 2]  # 259, rounded


def sum_rank(group):
    shard = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    whole = unshard_sequence(shard, group)
    (256 * whole if group.rank() == 0 else whole).sum().backward()
    return shard.grad


def test_a_rank_that_skips_the_backward_is_found_out(world: Worlds):
    answers = world(2).run(skipping_rank)
    assert all(type(x) is RingError for x in answers), answers
    assert "pass is backward of unshard_sequence on rank 0" in str(answers[0])
    answers = world(2).run(undecided_rank)
    assert all("gradients needed is True on rank 0 and False on rank 1" in str(x) for x in answers), answers


def skipping_rank(group):
    shard = torch.zeros(1, 2, requires_grad=True)
    whole = unshard_sequence(shard, group)
    if group.rank() == 0:
        whole.sum().backward()
    unshard_sequence(shard, group)


def undecided_rank(group):
    unshard_sequence(torch.zeros(1, 2, requires_grad=group.rank() == 0), group)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shard_sequence([1], 0, 2), "x must be a torch.Tensor, got list"),
        (lambda: shard_sequence(torch.zeros(1, 4), 0, "2"), "world_size must be int, got '2'"),
        (lambda: shard_sequence(torch.zeros(1, 4), 0, 2, dim="a"), "dim must be int, got 'a'"),
        (lambda: unshard_sequence([1], "local"), "shard must be a torch.Tensor, got list"),
        (lambda: unshard_sequence(torch.zeros(1, 4), "local", length="a"), "length must be int, got 'a'"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        call()


def test_errors():
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size\), got rank=2, world_size=2"):
        shard_sequence(x, 2, 2)
    with pytest.raises(ValueError, match="sharding must be one of contiguous, zigzag, got 'ring'"):
        shard_sequence(x, 0, 2, "ring")
    with pytest.raises(ValueError, match=r"length must be in \[0, 4\] \(all shards\), got 5"):
        unshard_sequence(x, None, length=5)
