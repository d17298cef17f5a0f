"""What PyTorch's CPU kernel gets wrong, each pinned here against a softmax written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.kernels.fused import fused_backward, fused_forward

INF = float("inf")


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def written_out(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """out and lse for ``allowed [B, N, N]``, zeros and -inf where nothing is allowed."""
    scores = query @ key.transpose(-1, -2) * scale
    weights = scores.exp() * allowed[:, None]
    total = weights.sum(-1)
    return weights @ value / total.clamp(min=1e-300)[..., None], total.log()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_keys_give_zero_and_minus_infinity(is_causal: bool, dtype: torch.dtype):
    query, key, value = (draw(2, 3, 7, 4, dtype=dtype) for _ in range(3))
    ignored = torch.zeros(2, 7, dtype=torch.bool)
    ignored[0, :3] = True
    ignored[1] = True
    allowed = (~ignored[:, None, :]).expand(2, 7, 7)
    allowed = allowed.tril() if is_causal else allowed
    expected, expected_lse = written_out(query.double(), key.double(), value.double(), allowed, 0.5)
    out, lse = fused_forward(query, key, value, is_causal=is_causal, scale=0.5, ignored=ignored)
    assert (lse[1] == -INF).all()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=tolerance)

    grad = torch.randn_like(out)
    grads = fused_backward(grad, query, key, value, out, lse, is_causal=is_causal, scale=0.5, ignored=ignored)
    expected_grads = torch.autograd.grad(expected, (query, key, value), grad.double())
    for got, want in zip(grads, expected_grads, strict=True):
        assert not got.isnan().any()
        torch.testing.assert_close(got, want.to(dtype), rtol=0, atol=tolerance)


def test_float64_queries_meet_a_float64_mask():
    query, key, value = (draw(1, 1, 40, 4) for _ in range(3))
    ignored = torch.rand(1, 40) < 0.5
    expected, _ = written_out(query, key, value, (~ignored[:, None, :]).expand(1, 40, 40), 1.0)
    out, _ = fused_forward(query, key, value, is_causal=False, scale=1.0, ignored=ignored)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_a_strided_last_dimension_is_read_right():
    query, key, value = (draw(1, 2, 4, 9).transpose(-1, -2) for _ in range(3))
    expected, expected_lse = written_out(query, key, value, torch.ones(1, 9, 9).tril(), 1.0)
    out, lse = fused_forward(query, key, value, is_causal=True, scale=1.0)
    torch.testing.assert_close((out, lse), (expected, expected_lse), rtol=0, atol=1e-12)
    grad = torch.randn(1, 2, 4, 9, dtype=torch.float64).transpose(-1, -2)
    grads = fused_backward(grad, query, key, value, out, lse, is_causal=True, scale=1.0)
    expected_grads = torch.autograd.grad(expected, (query, key, value), grad)
    torch.testing.assert_close(grads, expected_grads, rtol=0, atol=1e-12)


def test_no_rows_are_refused_before_they_end_the_process():
    empty = torch.zeros(1, 2, 0, 4)
    with pytest.raises(AssertionError, match="no rows"):
        fused_forward(empty, empty, empty, is_causal=False, scale=1.0)
    with pytest.raises(AssertionError, match="no rows"):
        fused_backward(empty, empty, empty, empty, empty, empty[..., 0], is_causal=False, scale=1.0)
