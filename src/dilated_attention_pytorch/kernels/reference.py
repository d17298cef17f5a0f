"""The oracle: dilated attention written as its definition, in plain torch, with a dense mask of counts.

Memory and time grow with ``n * n``. It serves small inputs, devices without a fused kernel, and the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.autocast import without_autocast
from ..core.pattern import DilatedPattern


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: DilatedPattern,
    *,
    is_causal: bool,
    softmax_scale: float,
    key_padding_mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One softmax over the multiset union of the keys that all branches offer.

    Args:
        query: ``[b, n, h, d]``.
        key, value: ``[b, n, h_kv, d]``.
        pattern: the branches.
        is_causal: a query sees no later token.
        softmax_scale: factor on the dot products.
        key_padding_mask: bool ``[b, n]``, True = ignore.
        positions: int64 ``[n]`` or ``[b, n]``, ranks for membership.

    Returns:
        out ``[b, n, h, d]`` in the dtype of ``query`` and lse ``[b, h, n]`` in the accumulation dtype. A
        (query, head) that no branch serves gives 0 and -inf.
    """
    batch, seq, heads, _ = query.shape
    accumulation = torch.float64 if query.dtype == torch.float64 else torch.float32
    group = heads // key.shape[2]
    q, k, v = (x.to(accumulation) for x in (query, key, value))
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    spoilt = None
    if key_padding_mask is not None:
        # A weight or a gradient of 0 times NaN is NaN.
        ignored = key_padding_mask[..., None, None]
        k, v = k.masked_fill(ignored, 0.0), v.masked_fill(ignored, 0.0)
        with torch.no_grad(), without_autocast(query.device.type):
            finite = torch.einsum("bihd,bjhd->bhij", q, k).isfinite().all(-1)
        spoilt = ignored & ~finite.transpose(1, 2)[..., None]
        q = q.masked_fill(spoilt, 0.0)

    if positions is None:
        positions = torch.arange(seq, device=query.device)
    if positions.dim() == 1:
        counts = pattern.mask(seq, is_causal, positions)[None].expand(batch, -1, -1, -1)
    elif batch:
        counts = torch.stack([pattern.mask(seq, is_causal, row) for row in positions])
    else:
        counts = torch.zeros(0, heads, seq, seq, dtype=torch.int64, device=query.device)
    if key_padding_mask is not None:
        counts = counts.masked_fill(key_padding_mask[:, None, None, :], 0)

    with without_autocast(query.device.type):  # it would round the scores
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * softmax_scale
        hidden = counts == 0
        unserved = hidden.all(-1)
        # A row of -inf has no derivative: an unserved row is computed from 0, and its results replaced.
        scores = (scores + counts.to(accumulation).log()).masked_fill(hidden, float("-inf"))
        scores = scores.masked_fill(unserved[..., None], 0.0)
        lse = scores.logsumexp(dim=-1) if seq else scores.new_zeros(batch, heads, 0)
        weights = (scores - lse[..., None]).exp().masked_fill(unserved[..., None], 0.0)
        lse = lse.masked_fill(unserved, float("-inf"))
        out = torch.einsum("bhij,bjhd->bihd", weights, v)
        if spoilt is not None:
            out = out.masked_fill(spoilt, float("nan"))
            lse = lse.masked_fill(spoilt[..., 0].transpose(1, 2), float("nan"))
    return out.to(query.dtype), lse.detach()
