"""Merging attention over two sets of keys."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_lse(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two sets of keys, from attention over each.

    Args:
        out_a, out_b: ``[b, n, h, d]``, the softmax-weighted values of each set.
        lse_a, lse_b: ``[b, h, n]``, the log-sum-exp of its scores; -inf where the set is empty.

    Returns:
        out ``[b, n, h, d]`` in the dtype of ``out_a``, lse ``[b, h, n]``; 0 and -inf where both are empty.

    Differentiable. (FlashAttention-2, arXiv:2307.08691, section 2.3.1.)
    """
    # -inf - -inf is NaN, in the gradient too: where both are empty, compute with another number.
    neither = (lse_a == -torch.inf) & (lse_b == -torch.inf)
    lse_a, lse_b = lse_a.masked_fill(neither, 0.0), lse_b.masked_fill(neither, 0.0)
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = ((x - lse).exp().transpose(1, 2)[..., None] for x in (lse_a, lse_b))
    out = weight_a * out_a + weight_b * out_b
    return out.to(out_a.dtype), lse.masked_fill(neither, -torch.inf)
