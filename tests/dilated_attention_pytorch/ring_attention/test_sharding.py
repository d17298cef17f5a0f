from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import World

from dilated_attention_pytorch.ring_attention import shard_sequence, unshard_sequence

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


def round_trip_rank(group, x, sharding, dim):
    shard, _ = shard_sequence(x, group.rank(), group.size(), sharding, dim)
    return unshard_sequence(shard, group, sharding, x.shape[dim], dim)


def test_errors():
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size\), got rank=2, world_size=2"):
        shard_sequence(x, 2, 2)
    with pytest.raises(ValueError, match="sharding must be one of contiguous, zigzag, got 'ring'"):
        shard_sequence(x, 0, 2, "ring")
    with pytest.raises(ValueError, match=r"length must be in \[0, 4\] \(all shards\), got 5"):
        unshard_sequence(x, None, length=5)
