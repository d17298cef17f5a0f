"""A pattern with gaps is warned of around a ring as on one device."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch.distributed import ProcessGroup, init_device_mesh
from worlds import World

from dilated_attention_pytorch.core import pattern as pattern_module
from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    RingDistributedDilatedAttention,
)
from dilated_attention_pytorch.ring_attention.utils.communication import RingError

Worlds = Callable[[int], World]
GAPS = {"segment_lengths": [16, 32], "dilation_rates": [2, 4]}
CONFIG = RingAttentionConfig(**GAPS)
MODULES = ["ring", "hilbert", "mesh", "1 x all", "all x 1"]


def module_of(name: str, group: ProcessGroup) -> torch.nn.Module:
    size = group.size()
    if name in ("ring", "hilbert"):
        return {"ring": RingDilatedAttention, "hilbert": RingDilatedAttentionHilbert}[name](CONFIG, group)
    shape = {"mesh": (size,), "1 x all": (1, size), "all x 1": (size, 1)}[name]
    return RingDistributedDilatedAttention(CONFIG, init_device_mesh("cpu", shape))


def messages_of(module: torch.nn.Module, heads: int, calls: int = 2) -> list[str]:
    """The warnings of some calls with that many heads in all."""
    pattern_module._warn_of_gaps.cache_clear()
    x = torch.ones(1, 16, heads, 4)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(calls):
            module(x, x, x)
    return [str(warning.message) for warning in warned if warning.category is UserWarning]


def warned_rank(group: ProcessGroup, name: str) -> list[str]:
    return messages_of(module_of(name, group), 4)


def says(heads: int) -> str:
    """Rate 2 serves half of each head's tokens, and rate 4 a part of that half."""
    return (
        "The pattern serves only 50 % of the (token, head) pairs (coverage 0.5), the output of the others is "
        f"0: segment_lengths=[16, 32], dilation_rates=[2, 4], num_heads={heads}. "
        "A branch with dilation rate 1 serves all"
    )


@pytest.mark.parametrize("name", MODULES)
def test_every_rank_warns_once(world: Worlds, name: str):
    assert world(2).results(warned_rank, name) == [[says(4)]] * 2


@pytest.mark.parametrize("ring_size", [None, 2])
@pytest.mark.parametrize("ring", [RingDilatedAttention, RingDilatedAttentionHilbert])
def test_without_a_group(ring: type[RingDilatedAttention], ring_size: int | None):
    assert messages_of(ring(RingAttentionConfig(**GAPS, ring_size=ring_size)), 1) == [says(1)]


def test_a_pattern_without_gaps_is_silent():
    config = RingAttentionConfig(segment_lengths=[16, 32], dilation_rates=[1, 4], ring_size=2)
    assert messages_of(RingDilatedAttention(config), 4) == []


def refused_rank(group: ProcessGroup, name: str) -> str:
    module = module_of(name, group)
    pattern_module._warn_of_gaps.cache_clear()
    x = torch.ones(1, 16, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if group.rank() == 1 else "ignore", UserWarning)
        try:
            module(x, x, x)
        except (UserWarning, RingError) as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize("name", MODULES)
def test_a_rank_whose_warning_is_an_error_tells_the_others(world: Worlds, name: str):
    first, second = world(2).results(refused_rank, name)
    assert second == f"UserWarning: {says(4)}"
    assert first.startswith("RankFailed: ")
    assert says(4) in first
