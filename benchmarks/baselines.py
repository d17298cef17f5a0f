"""What dilated attention is measured against.

Letters: b batch, n sequence, h heads, d head dimension, w segment length, r dilation rate, s segments of the
batch (b * n / w), m rows of a segment for one head (w / r).

Everything here needs n to be a multiple of w, and w and h multiples of r: there is nothing to pad then.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dilated_attention_pytorch.kernels.fused import fused_forward

Branch = tuple[int, int]


def gather(x: Tensor, branch: Branch) -> Tensor:
    """The rows of one branch, contiguous: ``[b, n, h, d]`` to ``[s, h, m, d]``."""
    w, r = branch
    b, n, h, d = x.shape
    # position = row * r + offset, head = group * r + offset: the two offsets are equal on the diagonal
    blocks = x.view(b * n // w, w // r, r, h // r, r, d)
    rows = blocks.diagonal(dim1=2, dim2=4)
    return rows.permute(0, 2, 4, 1, 3).flatten(1, 2).contiguous()


def scatter(rows: Tensor, branch: Branch, batch: int, fill: float) -> Tensor:
    """The inverse of ``gather``, ``[s, h, m, d]`` to ``[b, n, h, d]``, with ``fill`` where no row belongs."""
    _, r = branch
    s, h, m, d = rows.shape
    dense = rows.new_full((s, m, r, h // r, r, d), fill)
    dense.diagonal(dim1=2, dim2=4).copy_(rows.view(s, h // r, r, m, d).permute(0, 3, 1, 4, 2))
    return dense.view(batch, -1, h, d)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """PyTorch's fused attention on ``[s, h, m, d]``, without the dispatch around it on CPU."""
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = flash(query, key, value, 0.0, is_causal)[0]
    return out


def gather_pad_scatter(
    query: Tensor, key: Tensor, value: Tensor, branches: list[Branch], is_causal: bool
) -> Tensor:
    """Dilated attention forward the way LongNet describes it (arXiv:2307.02486, section 3.1).

    Each branch is gathered from dense to sparse, attended by the fused kernel, and scattered back to dense;
    the dense outputs of all branches are stacked and mixed by the softmax of their log-sum-exp (equation 10).

    Args:
        query, key, value: ``[b, n, h, d]``.
        branches: pairs (w, r).
        is_causal: a query sees no later token.
    """
    outputs, lses = [], []
    scale = query.shape[-1] ** -0.5
    for branch in branches:
        q, k, v = (gather(x, branch) for x in (query, key, value))
        out, lse = fused_forward(q, k, v, is_causal=is_causal, scale=scale)
        outputs.append(scatter(out, branch, query.shape[0], 0.0))
        lses.append(scatter(lse[..., None], branch, query.shape[0], float("-inf")))
    weights = torch.stack(lses).softmax(0)
    return (torch.stack(outputs) * weights).sum(0).to(query.dtype)
