"""Random problems for property-based tests, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    batch: int
    seq: int
    heads: int
    kv_heads: int
    head_dim: int
    branches: tuple[tuple[int, int], ...]
    is_causal: bool
    padded: bool
    ranked: str  # which positions: none, one row for all, one row each
    layout: str  # strides of the inputs
    seed: int

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """query, key, value (leaves that require gradients) and a gradient of the output."""
        random = torch.Generator().manual_seed(self.seed)

        def draw(heads: int) -> Tensor:
            shape = (self.batch, self.seq, heads, self.head_dim)
            x = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
            if self.layout == "heads first":
                x = x.transpose(1, 2).contiguous().transpose(1, 2)
            elif self.layout == "last dimension strided":
                x = x.transpose(2, 3).contiguous().transpose(2, 3)
            elif self.layout == "every other row":
                x = torch.stack((x, torch.full_like(x, torch.nan)), dim=2).flatten(1, 2)[:, ::2]
            return x.detach().requires_grad_()

        query, key, value = draw(self.heads), draw(self.kv_heads), draw(self.kv_heads)
        return query, key, value, draw(self.heads).detach()

    @property
    def padding(self) -> Tensor | None:
        if not self.padded:
            return None
        random = torch.Generator().manual_seed(self.seed + 1)
        share = torch.rand(self.batch, 1, generator=random)
        return torch.rand(self.batch, self.seq, generator=random) < share * 1.2

    @property
    def positions(self) -> Tensor | None:
        if self.ranked == "none":
            return None
        random = torch.Generator().manual_seed(self.seed + 2)
        rows = [
            torch.randperm(self.seq * (1 + i % 2), generator=random)[: self.seq] for i in range(self.batch)
        ]
        return rows[0] if self.ranked == "one row" else torch.stack(rows)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``dilated_attention`` beyond the three tensors."""
        segment_lengths, dilation_rates = zip(*self.branches, strict=True)
        return {
            "segment_lengths": segment_lengths,
            "dilation_rates": dilation_rates,
            "is_causal": self.is_causal,
            "key_padding_mask": self.padding,
            "positions": self.positions,
        }


LAYOUTS = ("contiguous", "heads first", "last dimension strided", "every other row")

problems = st.builds(
    lambda group, kv_heads, **rest: Problem(heads=group * kv_heads, kv_heads=kv_heads, **rest),
    group=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    batch=st.integers(1, 3),
    seq=st.sampled_from((1, 2, 3, 5, 8, 13, 16, 17, 24, 31, 32)),
    head_dim=st.sampled_from((1, 3, 8)),
    branches=st.lists(
        st.tuples(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 100)), st.integers(1, 6)),
        min_size=1,
        max_size=3,
    ).map(tuple),
    is_causal=st.booleans(),
    padded=st.booleans(),
    ranked=st.sampled_from(("none", "none", "one row", "row each")),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
