from __future__ import annotations

import pytest
import torch

from dilated_attention_pytorch.ring_attention.utils.lse import merge_lse


def attend(scores, values):
    """[n, m] scores and [m, d] values to out [1, n, 1, d] and lse [1, 1, n]."""
    if not scores.shape[1]:
        return scores.new_zeros(1, len(scores), 1, values.shape[1]), scores.new_full(
            (1, 1, len(scores)), -torch.inf
        )
    return (scores.softmax(-1) @ values)[None, :, None], scores.logsumexp(-1)[None, None]


@pytest.mark.parametrize("split", [0, 1, 5, 9])
def test_merged_parts_are_the_whole_with_gradients(split: int):
    scores = (100 * torch.randn(4, 9, dtype=torch.float64)).requires_grad_()
    values = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    parts = (attend(scores[:, :split], values[:split]), attend(scores[:, split:], values[split:]))
    merged = merge_lse(*parts[0], *parts[1])
    whole = attend(scores, values)
    torch.testing.assert_close(merged, whole, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(out.sum() + lse.sum(), (scores, values)) for out, lse in (merged, whole)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_two_empty_sides_give_zero_and_no_nan():
    lse = torch.full((1, 1, 2), -torch.inf, requires_grad=True)
    out = torch.zeros(1, 2, 1, 3, requires_grad=True)
    merged, merged_lse = merge_lse(out, lse, out, lse)
    assert torch.equal(merged, out)
    assert torch.equal(merged_lse, lse)
    grads = torch.autograd.grad(merged.sum(), (out, lse))
    assert not any(grad.isnan().any() for grad in grads)
