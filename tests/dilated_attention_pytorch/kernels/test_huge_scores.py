"""Scores whose neighbouring numbers lie too far apart for the backward: one clear error, nothing wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import MultiheadDilatedAttention, dilated_attention
from dilated_attention_pytorch.kernels.problem import largest_score

PAGE = (Path(__file__).parents[3] / "docs/kernels.md").read_text()
DOCUMENTED = [
    re.findall(r"[^\s|]+", line)
    for line in re.findall(r"^\| (?:scores up to|relative error) (.*)$", PAGE, re.MULTILINE)
]
"""Largest score, and the relative error up to there."""
BRANCHES = ([8, 16, 32], [1, 2, 4])


def one_token(score: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key, value of one token that sees itself through three branches."""
    side = torch.full((1, 1, 1, 64), (score / 8) ** 0.5, dtype=dtype)
    return [x.clone().requires_grad_() for x in (side, side, torch.ones_like(side))]


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_gradients_are_refused_where_a_weight_would_count_once_for_each_branch(backend: str):
    if backend == "triton":
        pytest.importorskip("triton")
    inputs = one_token(8 * 133120.0**2)
    out = dilated_attention(*inputs, *BRANCHES, backend=backend)
    torch.testing.assert_close(out, inputs[2])
    with pytest.raises(
        ValueError, match=r"query and key have scores of 1\.4e\+11: above 1\.0e\+06 .* float32"
    ):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_below_the_limit_the_weights_of_a_query_sum_to_1(dtype: torch.dtype):
    inputs = one_token(0.99 * largest_score(dtype), dtype)
    out = dilated_attention(*inputs, *BRANCHES, backend="sdpa")
    grad_value = torch.autograd.grad(out.sum(), inputs[2])[0]
    # Half of the distance of neighbours: lse is no more exact.
    torch.testing.assert_close(grad_value, torch.ones_like(grad_value), rtol=0.04, atol=0)


@pytest.mark.parametrize("exponent", [14, 16, 17, 18, 19, 20])
def test_below_the_limit_a_weight_errs_by_the_distance_of_neighbouring_scores(exponent: int):
    """As the documentation says of a key that three branches offer alone."""
    scores = 2.0 ** torch.linspace(exponent - 1, exponent - 0.01, 400)
    query = (scores[:, None, None, None] / 8).sqrt().expand(-1, 1, 1, 64).contiguous()
    errors = {}
    for backend in ("sdpa", "reference"):
        value = torch.ones_like(query).requires_grad_()
        out = dilated_attention(query, query, value, *BRANCHES, backend=backend)
        (grad_value,) = torch.autograd.grad(out.sum(), value)
        errors[backend] = (grad_value - 1).abs().flatten(1).amax(1)
        torch.testing.assert_close(out, value, rtol=1e-6, atol=0)
    assert bool((errors["sdpa"] <= scores * torch.finfo(torch.float32).eps).all())
    assert errors["reference"].max() < 1e-6
    documented = dict(zip(*DOCUMENTED, strict=True))[f"2^{exponent}"]
    assert errors["sdpa"].max() <= 1.1 * float(documented)


def test_float64_and_the_reference_go_on():
    for backend, dtype in (("sdpa", torch.float64), ("reference", torch.float32)):
        inputs = one_token(8 * 133120.0**2, dtype)
        grads = torch.autograd.grad(dilated_attention(*inputs, *BRANCHES, backend=backend).sum(), inputs)
        torch.testing.assert_close(grads[2], torch.ones_like(grads[2]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_fed_with_huge_numbers(dtype: torch.dtype):
    layer = MultiheadDilatedAttention(64, 4, segment_lengths=[16, 32], dilation_rates=[1, 2], dtype=dtype)
    x = (1e4 * torch.randn(1, 48, 64)).to(dtype)
    with pytest.raises(ValueError, match="normalise query and key, lower softmax_scale"):
        layer(x)[0].sum().backward()


def test_queries_without_an_incoming_gradient_do_not_count():
    query, key, value = torch.randn(3, 1, 32, 2, 8).unbind()
    results = []
    for size in (1.0, 1e8, torch.nan):
        inputs = [x.clone() for x in (query, key, value)]
        inputs[0][:, 20:] *= size
        inputs = [x.requires_grad_() for x in inputs]
        out = dilated_attention(*inputs, [16, 32], [1, 2], backend="sdpa")
        results.append(torch.autograd.grad(out[:, :20].sum(), inputs))
    for grads in results[1:]:
        assert (grads[0][:, 20:] == 0).all()
        torch.testing.assert_close(grads, results[0], rtol=0, atol=1e-6)
