"""A rank that dies or disagrees: every rank that waits raises, names it, and nothing hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from worlds import World

from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    unshard_sequence,
)
from dilated_attention_pytorch.ring_attention.utils.communication import RingError

Worlds = Callable[[int], World]


def different_rank(group, changed: dict[str, Any]) -> None:
    """Rank 1 differs in one thing."""
    mine = changed if group.rank() == 1 else {}
    options = {"segment_lengths": [32], "dilation_rates": [1]}
    config = RingAttentionConfig(**{**options, **mine.get("config", {})})
    shape = mine.get("shape", (1, 8, 2, 4))
    q, k, v = (torch.randn(shape, dtype=mine.get("dtype", torch.float32)) for _ in range(3))
    q.requires_grad_(mine.get("requires_grad", True))
    RingDilatedAttention(config, group)(q, k, v, mine.get("is_causal", False))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"shape": (1, 7, 2, 4)}, "query is [1, 8, 2, 4] on rank 0 and [1, 7, 2, 4] on rank 1"),
        ({"dtype": torch.bfloat16}, "dtype is torch.float32 on rank 0 and torch.bfloat16 on rank 1"),
        ({"is_causal": True}, "is_causal is False on rank 0 and True on rank 1"),
        (
            {"requires_grad": False},
            "gradients needed is [True, False, False] on rank 0 and [False, False, False] on rank 1",
        ),
        ({"config": {"segment_lengths": [16]}}, "segment_lengths is [32] on rank 0 and [16] on rank 1"),
        ({"config": {"dilation_rates": [2]}}, "dilation_rates is [1] on rank 0 and [2] on rank 1"),
        ({"config": {"softmax_scale": 0.25}}, "softmax_scale is 0.5 on rank 0 and 0.25 on rank 1"),
        ({"config": {"sharding": "zigzag"}}, "sharding is contiguous on rank 0 and zigzag on rank 1"),
        (
            {"config": {"overlap_communication": False}},
            "overlap_communication is True on rank 0 and False on rank 1",
        ),
    ],
)
def test_ranks_that_disagree(world: Worlds, changed: dict[str, Any], what: str):
    answers = world(3).run(different_rank, changed)
    assert [type(x) for x in answers] == [RingError] * 3
    assert {str(x) for x in answers} == {str(answers[0])}
    assert str(answers[0]).startswith("the ranks of the group disagree: ")
    assert what in str(answers[0])


def test_many_branches_do_not_fit_one_message_and_are_compared_all_the_same(world: Worlds):
    branches = {"segment_lengths": [10_000_000 + i for i in range(100)], "dilation_rates": [1] * 100}
    changed = {"config": branches}
    answers = world(2).run(different_rank, changed)
    assert all(isinstance(x, RingError) and "segment_lengths is" in str(x) for x in answers)


def dying_rank(group, when: str) -> None:
    config = RingAttentionConfig(segment_lengths=[64], dilation_rates=[1])
    q, k, v = (torch.randn(1, 16, 2, 4, requires_grad=True) for _ in range(3))
    ring = RingDilatedAttention(config, group)
    ring(q, k, v)  # the connections are up
    if when == "forward" and group.rank() == 1:
        _die_in_hop(2)
    out = ring(q, k, v)
    if when == "backward" and group.rank() == 1:
        _die_in_hop(2)
    out.sum().backward()


def _die_in_hop(number: int) -> None:
    """Be killed where hop ``number`` would be posted."""
    import torch.distributed as dist

    genuine = dist.batch_isend_irecv
    hops = []

    def counting(ops):
        if ops[0].tensor.dtype == torch.float32:
            hops.append(ops)
        if len(hops) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return genuine(ops)

    dist.batch_isend_irecv = counting


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_rank_killed_in_mid_ring(when: str):
    with World(3, timeout_s=20) as world:
        answers = world.run(dying_rank, when)
        assert isinstance(answers[1], EOFError)
        for rank in (0, 2):
            assert isinstance(answers[rank], RingError), answers[rank]
            assert f"rank {rank} of 3 waited for" in str(answers[rank])
        # Whoever waits for the dead rank itself names it; the other may have waited for that one.
        assert any("waited for rank 1 of 3" in str(answers[rank]) for rank in (0, 2))


def silent_rank(group) -> None:
    if group.rank() == 0:
        config = RingAttentionConfig(segment_lengths=[64], dilation_rates=[1])
        RingDilatedAttention(config, group)(*(torch.randn(1, 16, 2, 4) for _ in range(3)))


def test_a_rank_that_never_calls():
    with World(2, timeout_s=10) as world:
        answer, _ = world.run(silent_rank)
        assert isinstance(answer, RingError), answer
        assert "rank 0 of 2 waited for rank 1 of 2, which failed or did not answer" in str(answer)


def refusing_rank(group, wrong: dict[str, Any]) -> None:
    """Rank 1 gives what it should not."""
    config = RingAttentionConfig(segment_lengths=[64], dilation_rates=[1])
    q, k, v = (torch.randn(1, 16, 2, 4) for _ in range(3))
    RingDilatedAttention(config, group)(q, k, v, **(wrong if group.rank() == 1 else {}))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"key_padding_mask": torch.zeros(1, 17, dtype=torch.bool)},
            ValueError,
            "key_padding_mask must be [batch, seq] = [1, 16], got [1, 17]",
        ),
        ({"is_causal": "no"}, TypeError, "is_causal must be bool, got 'no'"),
    ],
)
def test_a_rank_that_refuses_its_arguments_tells_the_others(world: Worlds, wrong, error, message: str):
    first, second = world(2).run(refusing_rank, wrong)
    assert (type(second), str(second)) == (error, message)
    assert isinstance(first, RingError)
    assert str(first) == f"rank 1 of 2 cannot go on: {error.__name__}: {message}"


def skipping_rank(group) -> None:
    config = RingAttentionConfig(segment_lengths=[64], dilation_rates=[1])
    q, k, v = (torch.randn(1, 16, 2, 4, requires_grad=True) for _ in range(3))
    ring = RingDilatedAttention(config, group)
    out = ring(q, k, v)
    if group.rank() == 0:
        out.sum().backward()
    ring(q, k, v)


def test_a_rank_that_skips_the_backward(world: Worlds):
    first, second = world(2).run(skipping_rank)
    assert (type(first), type(second)) == (RingError, RingError)
    assert "pass is backward on rank 0 and forward on rank 1" in str(first)


def test_zigzag_needs_two_equal_parts(world: Worlds):
    message = "sharding='zigzag' needs an even number of tokens on each rank, got 3"
    answers = world(2).run(odd_rank)
    assert [(type(x), str(x)) for x in answers] == [(ValueError, message)] * 2


def odd_rank(group) -> None:
    config = RingAttentionConfig(segment_lengths=[2], dilation_rates=[1], sharding="zigzag")
    RingDilatedAttention(config, group)(*(torch.randn(1, 3, 2, 4) for _ in range(3)))


def unequal_rank(group) -> None:
    unshard_sequence(torch.zeros(1, 3 + group.rank()), group)


def test_unequal_shards_are_not_put_together(world: Worlds):
    answers = world(2).run(unequal_rank)
    assert all(type(x) is RingError and "shard is [1, " in str(x) for x in answers)
