from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, problems
from torch.nn.functional import scaled_dot_product_attention

from dilated_attention_pytorch import DilatedAttention, DilatedPattern, dilated_attention

BACKENDS = ("reference", "sdpa")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(problem=problems)
def test_values_of_one_give_one_wherever_something_is_served(problem: Problem, backend: str):
    query, key, value, _ = problem.tensors(torch.float64)
    out, lse = dilated_attention(
        query, key, torch.ones_like(value), **problem.arguments, backend=backend, return_lse=True
    )
    served = (lse > -torch.inf).transpose(1, 2)[..., None].double()
    torch.testing.assert_close(out, served.expand_as(out), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(problem=problems, data=st.data())
def test_a_later_token_changes_nothing_earlier(problem: Problem, data, backend: str, dtype: torch.dtype):
    query, key, value, _ = (x.detach() for x in problem.tensors(dtype))
    arguments = problem.arguments | {"is_causal": True, "backend": backend}
    changed = data.draw(st.integers(0, problem.seq - 1))
    before = dilated_attention(query, key, value, **arguments)
    for x in (query, key, value):
        x[:, changed:] += 1
    after = dilated_attention(query, key, value, **arguments)
    assert torch.equal(before[:, :changed], after[:, :changed])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_one_full_branch_is_plain_attention(backend: str, is_causal: bool):
    query, key, value = (torch.randn(2, 33, 4, 8, dtype=torch.float64) for _ in range(3))
    out = dilated_attention(query, key, value, [40], [1], is_causal=is_causal, backend=backend)
    plain = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), is_causal=is_causal
    )
    torch.testing.assert_close(out, plain.transpose(1, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unserved_queries_give_zero_and_finite_gradients(backend: str):
    inputs = [torch.randn(1, 12, 4, 8, requires_grad=True) for _ in range(3)]
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[0, 4:8] = True
    out, lse = dilated_attention(
        *inputs, [4], [3], key_padding_mask=padding, backend=backend, return_lse=True
    )
    served = DilatedPattern([4], [3], 4).mask(12).masked_fill(padding[0], 0).sum(-1) > 0
    assert not served.all()
    assert torch.equal(lse[0] > -torch.inf, served)
    assert (out[0].transpose(0, 1)[~served] == 0).all()
    for grad in torch.autograd.grad(out.square().sum(), inputs):
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_is_not_hidden(backend: str):
    query, key, value = (torch.randn(1, 8, 1, 4) for _ in range(3))
    key[0, 6] = torch.nan  # offered to query 0 by the second branch only
    out = dilated_attention(query, key, value, [2, 8], [1, 2], backend=backend)
    assert out[0, 0].isnan().all()
    assert out[0, 1].isfinite().all()


def test_defaults_and_module_are_the_function():
    query, key, value = (torch.randn(1, 16, 4, 8) for _ in range(3))
    expected = dilated_attention(query, key, value, [8, 16], [1, 2], softmax_scale=8**-0.5, backend="sdpa")
    assert torch.equal(dilated_attention(query, key, value, [8, 16], [1, 2]), expected)
    assert torch.equal(DilatedAttention([8, 16], [1, 2])(query, key, value), expected)
    scaled = DilatedAttention([8, 16], [1, 2], softmax_scale=0.3)
    padding = torch.rand(1, 16) < 0.3
    assert torch.equal(
        scaled(query, key, value, is_causal=True, key_padding_mask=padding),
        dilated_attention(
            query, key, value, [8, 16], [1, 2], is_causal=True, softmax_scale=0.3, key_padding_mask=padding
        ),
    )
    assert "segment_lengths=[8, 16], dilation_rates=[1, 2]" in repr(scaled)


def test_lse_is_not_differentiable():
    inputs = [torch.randn(1, 8, 2, 4, requires_grad=True) for _ in range(3)]
    for backend in BACKENDS:
        _, lse = dilated_attention(*inputs, [4], [1], backend=backend, return_lse=True)
        assert not lse.requires_grad


QKV = dict.fromkeys(("query", "key", "value"), torch.zeros(2, 6, 4, 8))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(2, 5, 4, 8)}, ValueError, r"got query \(2, 5, 4, 8\), key \(2, 6, 4, 8\)"),
        ({"value": torch.zeros(2, 6, 2, 8)}, ValueError, r"got key \(2, 6, 4, 8\), value \(2, 6, 2, 8\)"),
        ({"query": torch.zeros(6, 4, 8)}, ValueError, r"query must be \[batch, seq, heads, head_dim\]"),
        ({"query": torch.zeros(2, 6, 3, 8)}, ValueError, "num_heads=3, num_kv_heads=4"),
        ({"key": torch.zeros(2, 6, 4, 8).double()}, TypeError, r"float32, torch\.float64, torch\.float32"),
        (
            {"query": torch.zeros(2, 6, 4, 8).long()},
            TypeError,
            r"query must be floating point, got torch\.int64",
        ),
        ({"query": [1.0]}, TypeError, r"query must be a torch\.Tensor, got list"),
        ({"query": torch.zeros(2, 6, 4, 8, device="meta")}, ValueError, "one device, got meta, cpu, cpu"),
        ({"key_padding_mask": torch.full((2, 6), -0.5)}, ValueError, r"must hold only 0 .*, got -0\.5"),
        (
            {"key_padding_mask": torch.zeros(2, 6).cfloat()},
            TypeError,
            r"key_padding_mask must be .*complex64",
        ),
        ({"key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)}, ValueError, r"\[2, 6\], got \[2, 5\]"),
        ({"positions": torch.zeros(6)}, TypeError, r"positions must be an int64 tensor, got torch\.float32"),
        ({"positions": torch.arange(5)}, ValueError, r"positions must be \[6\] .*, got \[5\]"),
        ({"positions": torch.arange(6) - 1}, ValueError, "positions must not be negative, got -1"),
        (
            {"positions": torch.tensor([0, 1, 2, 3, 4, 2])},
            ValueError,
            "positions must be distinct, got 2 twice",
        ),
        ({"segment_lengths": [4, 8]}, ValueError, r"segment_lengths=\[4, 8\], dilation_rates=\[1\]"),
        ({"softmax_scale": float("nan")}, ValueError, "softmax_scale must be positive and finite, got nan"),
        ({"is_causal": "no"}, TypeError, "is_causal must be bool, got 'no'"),
        ({"softmax_scale": "1"}, TypeError, "softmax_scale must be a number or None, got '1'"),
        ({"backend": "fast"}, ValueError, "got 'fast'"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_arguments_are_named(change, error, message, backend):
    arguments = {**QKV, "segment_lengths": [4], "dilation_rates": [1], "backend": backend} | change
    with pytest.raises(error, match=message):
        dilated_attention(**arguments)


def test_dropout_raises_at_construction():
    with pytest.raises(ValueError, match=r"attention_dropout must be 0\.0, got 0\.1"):
        DilatedAttention([4], [1], attention_dropout=0.1)
