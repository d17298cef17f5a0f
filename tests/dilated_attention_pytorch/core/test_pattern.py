from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import offered

from dilated_attention_pytorch.core.pattern import DilatedPattern

branches = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=3)


def pattern_of(pairs: list[tuple[int, int]], heads: int) -> DilatedPattern:
    segment_lengths, dilation_rates = zip(*pairs, strict=True)
    return DilatedPattern(segment_lengths, dilation_rates, heads)


@given(branches, st.integers(1, 5), st.integers(0, 17), st.booleans())
def test_mask_equals_the_definition(pairs, heads, seq, is_causal):
    expected = offered(range(seq), heads, pairs, is_causal)
    mask = pattern_of(pairs, heads).mask(seq, is_causal)
    assert mask.dtype == torch.int64
    assert torch.equal(mask.double(), expected)


@given(branches, st.integers(1, 4), st.permutations(range(11)))
def test_mask_by_positions_equals_the_definition(pairs, heads, positions):
    mask = pattern_of(pairs, heads).mask(11, True, torch.tensor(positions))
    assert torch.equal(mask.double(), offered(positions, heads, pairs, True))


@given(branches, st.integers(1, 5), st.integers(1, 17))
def test_coverage_counts_served_queries(pairs, heads, seq):
    served = offered(range(seq), heads, pairs, False).sum(dim=-1) > 0
    assert pattern_of(pairs, heads).coverage(seq) == served.double().mean().item()


@given(branches, st.integers(1, 5), st.integers(0, 17), st.booleans(), st.data())
def test_flops_count_offered_pairs(pairs, heads, seq, is_causal, data):
    pattern = pattern_of(pairs, heads)
    counts = offered(range(seq), heads, pairs, is_causal)
    assert pattern.flops(3, seq, 8, is_causal) == 4 * 8 * 3 * counts.sum().item()
    queries = data.draw(st.lists(st.integers(0, seq - 1), unique=True)) if seq else []
    chosen = torch.tensor(queries, dtype=torch.int64)
    expected = 4 * 8 * 3 * counts[:, chosen].sum().item()
    assert pattern.flops(3, seq, 8, is_causal, query_positions=chosen) == expected


def test_is_a_value():
    pattern = DilatedPattern([4, 8], [1, 2], 4, num_kv_heads=2)
    assert pattern == DilatedPattern((4, 8), (1, 2), 4, num_kv_heads=2)
    assert hash(pattern) == hash(DilatedPattern((4, 8), (1, 2), 4, num_kv_heads=2))
    assert pattern.branches == ((4, 1), (8, 2))
    assert DilatedPattern((4,), (1,), 3).num_kv_heads == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([4, 8], [1], 4), ValueError, r"segment_lengths=\[4, 8\], dilation_rates=\[1\]"),
        (([], [], 4), ValueError, "at least 1"),
        (([4, 0], [1, 1], 4), ValueError, r"segment_lengths must all be at least 1, got \[4, 0\]"),
        (([4, 2**63], [1, 1], 4), ValueError, r"segment_lengths must all be below 2\*\*63, got \[4, 92"),
        (([4], [2**63], 4), ValueError, r"dilation_rates must all be below 2\*\*63, got \[92"),
        (([4], [1], [4]), TypeError, r"num_heads must be int, got \[4\]"),
        (([4], [-1], 4), ValueError, r"dilation_rates must all be at least 1, got \[-1\]"),
        (([4.0], [1], 4), TypeError, r"segment_lengths must hold int only, got \[4.0\]"),
        ((4, [1], 4), TypeError, "segment_lengths must be a sequence of int, got 4"),
        (([4], [1], 0), ValueError, "num_heads=0"),
        (([4], [1], 4.0), TypeError, "num_heads must be int, got 4.0"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        DilatedPattern(*arguments)


def test_kv_heads_must_divide():
    with pytest.raises(ValueError, match="num_heads=4, num_kv_heads=3"):
        DilatedPattern([4], [1], 4, num_kv_heads=3)
