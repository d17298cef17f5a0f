"""Multi-head dilated attention, to stand in the place of ``nn.MultiheadAttention(batch_first=True)``.

Letters: b batch, n sequence, e embedding, h query heads, h_kv key/value heads, d head dimension (e / h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention import dilated_attention
from .core.pattern import DilatedPattern
from .core.validation import check_branches, check_no_dropout

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of query ``[b, n, h, d]`` over key and value ``[b, n, h_kv, d]``: ``[b, n, h, d]``."""


class _NotFused:
    """Stands for the packed weight that this module does not have.

    In evaluation ``nn.TransformerEncoder`` and its layers would compute dense attention from that weight
    themselves; they do not when an operand overrides torch functions, as this one claims to.
    """

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        return NotImplemented


class MultiheadDilatedAttention(nn.Module):
    """Dilated attention between learned projections, with MAGNETO's sub-LayerNorm before the last.

    LongNet (arXiv:2307.02486, section 2) on MAGNETO's block (arXiv:2210.06423, figure 2):
    ``out_proj(norm(dilated_attention(q_proj(query), k_proj(key), v_proj(value))))``. Weights start Xavier
    normal, with gain 1 for the query and key projections and ``gamma_init`` for the other two; biases at 0.

    It may replace ``self_attn`` of ``nn.TransformerEncoderLayer(batch_first=True)``.

    Args:
        embed_dim: e, a multiple of ``num_heads``.
        num_heads: h.
        segment_lengths, dilation_rates: the branches, see :class:`DilatedPattern`.
        num_kv_heads: h_kv, a divisor of ``num_heads``. Default: ``num_heads``.
        dropout: must be 0.0.
        bias: whether the projections have one.
        layer_norm: whether there is a sub-LayerNorm.
        layer_norm_eps: its epsilon.
        gamma_init: gain of the value and output projections; MAGNETO: ``sqrt(log(2 * num_layers))``.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """

    # What nn.TransformerEncoder and nn.TransformerEncoderLayer read of their attention.
    batch_first = True
    _qkv_same_embed_dim = True
    in_proj_weight = in_proj_bias = _NotFused()

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        segment_lengths: Sequence[int],
        dilation_rates: Sequence[int],
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        layer_norm: bool = True,
        layer_norm_eps: float = 1e-5,
        gamma_init: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_no_dropout("dropout", dropout)
        self.pattern = DilatedPattern(
            *check_branches(segment_lengths, dilation_rates), num_heads, num_kv_heads=num_kv_heads
        )
        if not isinstance(embed_dim, int):
            raise TypeError(f"embed_dim must be int, got {embed_dim!r}")
        if embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a positive multiple of num_heads, got {embed_dim=}, {num_heads=}"
            )
        if not (math.isfinite(gamma_init) and gamma_init > 0):
            raise ValueError(f"gamma_init must be positive and finite, got {gamma_init}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.gamma_init = gamma_init
        kv_dim = self.num_kv_heads * self.head_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias, **factory)
        self.k_proj = nn.Linear(embed_dim, kv_dim, bias, **factory)
        self.v_proj = nn.Linear(embed_dim, kv_dim, bias, **factory)
        self.norm = nn.LayerNorm(embed_dim, layer_norm_eps, **factory) if layer_norm else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw MAGNETO's initial weights (arXiv:2210.06423, figure 2)."""
        for projection, gain in (
            (self.q_proj, 1.0),
            (self.k_proj, 1.0),
            (self.v_proj, self.gamma_init),
            (self.out_proj, self.gamma_init),
        ):
            nn.init.xavier_normal_(projection.weight, gain=gain)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        attend: Attend | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: ``[b, n, e]``.
            key, value: ``[b, n, e]``; self-attention when left out.
            key_padding_mask: ``[b, n]``, as for :func:`dilated_attention`.
            is_causal: a query sees no later token.
            need_weights: must be False.
            attn_mask: must be None.
            attend: what maps the projected ``q [b, n, h, d]``, ``k``, ``v [b, n, h_kv, d]`` to
                ``[b, n, h, d]``, a ring attention for instance. Default: :func:`dilated_attention`. It has
                its own say on masks: ``key_padding_mask`` and ``is_causal`` must be left at their defaults.

        Returns:
            ``[b, n, e]``, and None in the place of the weights.
        """
        if need_weights:
            raise ValueError(
                "need_weights must be False, got True: the fused kernels never form the attention weights"
            )
        if attn_mask is not None:
            raise ValueError(
                "attn_mask must be None: segment_lengths and dilation_rates define who attends to whom; "
                "for a causal model pass is_causal=True alone, for padding key_padding_mask"
            )
        key = query if key is None else key
        value = key if value is None else value
        if attend is not None and (key_padding_mask is not None or is_causal):
            raise ValueError(
                "attend decides about masks itself: beside it key_padding_mask must be None, is_causal False"
            )
        q, k, v = self.project(query, key, value)
        if attend is not None:
            return self.merge(attend(q, k, v)), None
        out = dilated_attention(
            q,
            k,
            v,
            self.pattern.segment_lengths,
            self.pattern.dilation_rates,
            is_causal=is_causal,
            key_padding_mask=key_padding_mask,
        )
        return self.merge(out), None

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries ``[b, n, h, d]``, keys and values ``[b, n, h_kv, d]`` of three ``[b, n, e]``."""
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[2] != self.embed_dim:
                raise ValueError(
                    f"{name} must be [batch, seq, embed_dim={self.embed_dim}], got {list(tensor.shape)}"
                )
        if not query.shape == key.shape == value.shape:
            raise ValueError(
                "query, key and value must have one length and batch, dilated attention is defined along one "
                f"sequence: got query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
            )
        q = self.q_proj(query).unflatten(2, (self.num_heads, self.head_dim))
        k = self.k_proj(key).unflatten(2, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(value).unflatten(2, (self.num_kv_heads, self.head_dim))
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """The output ``[b, n, e]`` of attended heads ``[b, n, h, d]``."""
        out = heads.flatten(2)
        out = out if self.norm is None else self.norm(out)
        return self.out_proj(out)  # type: ignore[no-any-return]
