from __future__ import annotations

from typing import Any

import oracle
import pytest
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


PADDED = torch.zeros(2, 8, dtype=torch.bool)
PADDED[0, :3] = True  # on the left
PADDED[1] = True
POSITIONS = torch.tensor([3, 0, 9, 1, 2, 20, 5, 7])


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(
    ("branch", "arguments"),
    [
        ((8, 2), {}),
        ((8, 1), {"is_causal": True, "padding": PADDED}),
        ((4, 3), {"is_causal": True, "padding": PADDED, "positions": POSITIONS}),
    ],
    ids=["dilation", "padding", "both"],
)
def test_queries_that_nobody_serves_have_derivatives(branch: tuple[int, int], arguments: dict[str, Any]):
    """0, without NaN on the way: anomaly mode looks at every step, forward mode has no mask at the end."""
    inputs = [torch.randn(2, 8, heads, 3, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    renamed = {{"padding": "key_padding_mask"}.get(name, name): x for name, x in arguments.items()}

    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        return dilated_attention(*qkv, [branch[0]], [branch[1]], backend="reference", **renamed)

    expected, expected_lse = oracle.attention(*inputs, [branch], **arguments)
    assert bool((expected_lse == -torch.inf).any())
    with torch.autograd.detect_anomaly():
        actual = torch.autograd.grad(attend(*inputs).sin().sum(), inputs)
    exact = torch.autograd.grad(expected.sin().sum(), inputs)
    torch.testing.assert_close(actual, exact, rtol=0, atol=1e-12)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, actual_tangent = torch.func.jvp(lambda *qkv: attend(*qkv).sin().sum(), tuple(inputs), tangents)
    expected_tangent = sum((x * t).sum() for x, t in zip(exact, tangents, strict=True))
    torch.testing.assert_close(actual_tangent, expected_tangent, rtol=0, atol=1e-12)
    assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)
