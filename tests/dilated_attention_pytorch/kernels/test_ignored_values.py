"""Nothing that an ignored key holds reaches a result; for Triton see test_triton_ignored_values.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from garbage import KINDS, check_padding_is_not_read, spoil
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import Problem, problems

from dilated_attention_pytorch import dilated_attention
from dilated_attention_pytorch.kernels.fused import fused_backward, fused_forward
from dilated_attention_pytorch.ring_attention import RingAttentionConfig, RingDilatedAttentionHilbert

PADDED = Problem(2, 17, 4, 2, 8, ((4, 1), (8, 2), (16, 4)), False, True, "none", "contiguous", 3)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=60)
@given(
    problem=problems.map(lambda p: replace(p, padded=True)),
    kind=st.sampled_from(KINDS),
    queries_too=st.booleans(),
)
@example(problem=PADDED, kind="nan", queries_too=False)
@example(problem=PADDED, kind="nan", queries_too=True)
@example(problem=replace(PADDED, is_causal=True), kind="largest", queries_too=True)
def test_what_padded_tokens_hold_is_not_read(
    backend: str, dtype: torch.dtype, problem: Problem, kind: str, queries_too: bool
):
    check_padding_is_not_read(problem, dtype, backend, kind, queries_too=queries_too)


@pytest.mark.parametrize("native", [True, False])
def test_in_bfloat16(monkeypatch: pytest.MonkeyPatch, native: bool):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
    query, key, value, grad = PADDED.tensors(torch.bfloat16)
    padding = PADDED.padding
    assert padding is not None
    results = []
    for kind in (None, *KINDS):
        inputs = [query, *(x if kind is None else spoil(x, padding, kind) for x in (key, value))]
        out = dilated_attention(*inputs, **PADDED.arguments, backend="sdpa")
        results.append((out, *torch.autograd.grad(out, inputs, grad)))
    for spoilt in results[1:]:
        torch.testing.assert_close(spoilt, results[0], rtol=0, atol=0)


def test_keys_that_no_query_of_a_block_sees():
    """A ring's block under an explicit mask: one key is hidden from all queries, others from some."""
    random = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(1, 2, 5, 4, generator=random, dtype=torch.float64) for _ in range(4)
    )
    hidden = torch.ones(1, 5, 5, dtype=torch.bool).triu(1)
    hidden[..., 1] = True
    results = []
    for filling in (0.0, torch.nan):
        k, v = key.clone(), value.clone()
        k[:, :, 1] = v[:, :, 1] = filling
        out, lse = fused_forward(query, k, v, is_causal=False, scale=0.5, ignored=hidden)
        grads = fused_backward(grad, query, k, v, out, lse, is_causal=False, scale=0.5, ignored=hidden)
        results.append((out, lse, *grads))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


def test_an_unpadded_query_that_is_not_a_number_is_not_hidden():
    query, key, value, grad = PADDED.tensors(torch.float64)
    padding = PADDED.padding
    assert padding is not None
    token = int((~padding[0]).nonzero()[0])
    with torch.no_grad():
        query[0, token] = torch.nan
    for backend in ("sdpa", "reference"):
        out = dilated_attention(query, key, value, **PADDED.arguments, backend=backend)
        assert out[0, token].isnan().all()
        grad_query, grad_key, grad_value = torch.autograd.grad(out, (query, key, value), grad)
        assert grad_query[0, token].isnan().all()
        assert grad_key[0].isnan().any()
        assert grad_value[0].isnan().any()


def test_blocks_of_a_ring_merged_on_one_device():
    """Causality against the order of the curve hides keys from some queries of a block, padding from all."""
    config = RingAttentionConfig(segment_lengths=[8, 16], dilation_rates=[1, 2], ring_size=2)
    attention = RingDilatedAttentionHilbert(config, grid_shape=(4, 4))
    problem = Problem(2, 16, 2, 1, 4, ((8, 1), (16, 2)), True, True, "none", "contiguous", 3)
    query, key, value, grad = problem.tensors(torch.float64)
    padding = problem.padding
    assert padding is not None
    grad = grad.masked_fill(padding[..., None, None], 0.0)
    results = []
    for kind in (None, "all of them"):
        inputs = [x if kind is None else spoil(x, padding, kind) for x in (query, key, value)]
        out = attention(*inputs, True, padding)
        results.append([out[~padding], *torch.autograd.grad(out, inputs, grad)])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
