"""The oracle of the tests: dilated attention by its definition, dense and in float64.

It shares no code with the package: segments are built as lists of positions, the softmax is written out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def offered(
    positions: Sequence[int], heads: int, branches: Sequence[tuple[int, int]], is_causal: bool
) -> Tensor:
    """How often each query is offered each key: float64 ``[h, n, n]``."""
    n = len(positions)
    counts = torch.zeros(heads, n, n, dtype=torch.float64)
    for w, r in branches:
        for head in range(heads):
            segments = defaultdict(list)
            for i, p in enumerate(positions):
                if (p % w) % r == head % r:
                    segments[p // w].append(i)
            for members in segments.values():
                for i in members:
                    for s in members:
                        if s <= i or not is_causal:
                            counts[head, i, s] += 1
    return counts


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    branches: Sequence[tuple[int, int]],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    padding: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out ``[b, n, h, d]`` and lse ``[b, h, n]`` in float64, differentiable."""
    batch, n, heads, width = query.shape
    scale = width**-0.5 if scale is None else scale
    query, key, value = query.double(), key.double(), value.double()
    group = heads // key.shape[2]
    outs, lses = [], []
    for b in range(batch):
        ranks = range(n) if positions is None else positions.expand(batch, n)[b].tolist()
        counts = offered(ranks, heads, branches, is_causal)
        if padding is not None:
            counts[:, :, padding[b]] = 0
        for j in range(heads):
            scores = query[b, :, j] @ key[b, :, j // group].T * scale
            top = scores.detach().masked_fill(counts[j] == 0, -1e300).amax(dim=1, keepdim=True)
            weights = counts[j] * (scores - top).masked_fill(counts[j] == 0, 0.0).exp()
            total = weights.sum(dim=1, keepdim=True)
            outs.append((weights / total.clamp(min=1e-300)) @ value[b, :, j // group])
            lses.append(torch.where(total > 0, total.log() + top, -torch.inf)[:, 0])
    out = torch.stack(outs).unflatten(0, (batch, heads)).transpose(1, 2)
    return out, torch.stack(lses).unflatten(0, (batch, heads)).detach()
