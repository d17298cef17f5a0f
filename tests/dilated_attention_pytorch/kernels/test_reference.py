from __future__ import annotations

import oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, problems

from dilated_attention_pytorch import dilated_attention


@settings(max_examples=50)
@given(problems, st.sampled_from((0.1, 1.0)))
def test_equals_the_definition_with_gradients(problem: Problem, scale: float):
    query, key, value, grad = problem.tensors(torch.float64)
    expected, expected_lse = oracle.attention(
        query,
        key,
        value,
        problem.branches,
        is_causal=problem.is_causal,
        scale=scale,
        padding=problem.padding,
        positions=problem.positions,
    )
    out, lse = dilated_attention(
        query, key, value, **problem.arguments, softmax_scale=scale, backend="reference", return_lse=True
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(out, (query, key, value), grad)
    expected_grads = torch.autograd.grad(expected, (query, key, value), grad)
    torch.testing.assert_close(grads, expected_grads, rtol=0, atol=1e-12)


def test_can_be_differentiated_twice():
    inputs = [torch.randn(1, 5, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradgradcheck(
        lambda *qkv: dilated_attention(*qkv, [4, 8], [1, 2], is_causal=True, backend="reference"), inputs
    )
