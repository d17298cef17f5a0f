"""Multi-head dilated attention, a replacement for ``nn.MultiheadAttention``.

Letters: b batch, n sequence, e embedding, h query heads, h_kv key/value heads, d head dimension (e / h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention import dilated_attention
from .core.autocast import autocast
from .core.linear import initialize, xavier_std
from .core.masks import ignored_keys, mask_is_causal
from .core.pattern import DilatedPattern
from .core.validation import check_bool, check_branches, check_int, check_no_dropout

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


def _only_finite(x: Tensor, where: Tensor) -> Tensor:
    """``x`` with 0 for infinities and NaN where ``where`` is True."""
    return x.masked_fill(where & ~x.isfinite(), 0)


class MultiheadDilatedAttention(nn.Module):
    """Dilated self-attention between learned projections; called like ``nn.MultiheadAttention``.

    LongNet (arXiv:2307.02486, section 2) on MAGNETO's block (arXiv:2210.06423, figure 2):
    ``out_proj(norm(dilated_attention(q_proj(query), k_proj(key), v_proj(value))))``. Weights start Xavier
    normal, with gain 1 for the query and key projections and ``gamma_init`` for the other two; biases at 0.

    It may replace ``self_attn`` of a ``nn.TransformerEncoderLayer`` or ``nn.TransformerDecoderLayer``;
    :func:`replace_attention` does that for a whole model. ``load_state_dict`` takes the state dict of a
    ``nn.MultiheadAttention`` too.

    **batch_first is True by default**, in ``nn.MultiheadAttention`` and torch's transformer layers it is
    False. Both layouts have three dimensions, so a wrong one cannot be detected: attention would run along
    the batch. Give the module the ``batch_first`` of the layer that it is put into.

    Args:
        embed_dim: e, a multiple of ``num_heads``.
        num_heads: h.
        segment_lengths, dilation_rates: the branches, see :class:`DilatedPattern`.
        num_kv_heads: h_kv, a divisor of ``num_heads``. Default: ``num_heads``.
        dropout: must be 0.0: dropout of attention weights would need the weights, which fused kernels never
            form. Drop out the output instead, as torch's transformer layers do after their attention.
        bias: whether the projections have one.
        kdim, vdim: widths of key and value. Default: ``embed_dim``.
        batch_first: whether inputs and outputs are ``[b, n, e]`` or ``[n, b, e]``.
        layer_norm: whether there is a sub-LayerNorm.
        layer_norm_eps: its epsilon.
        gamma_init: gain of the value and output projections; MAGNETO: ``sqrt(log(2 * num_layers))``.
        add_bias_kv, add_zero_attn: must be False: the pattern has no positions for the keys they add.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """

    # What nn.TransformerEncoder and nn.TransformerEncoderLayer read of their attention.
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
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = True,
        layer_norm: bool = True,
        layer_norm_eps: float = 1e-5,
        gamma_init: float = 1.0,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_no_dropout("dropout", dropout)
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("layer_norm", layer_norm)):
            check_bool(name, flag)
        for name, asked in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if asked:
                raise ValueError(
                    f"{name} must be False, got {asked!r}: the pattern has no positions for such keys"
                )
        self.pattern = DilatedPattern(
            *check_branches(segment_lengths, dilation_rates), num_heads, num_kv_heads=num_kv_heads
        )
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        for name, width in (("embed_dim", embed_dim), ("kdim", kdim), ("vdim", vdim)):
            check_int(name, width)
            if width < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={width}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim=}, {num_heads=}")
        for name, number in (("layer_norm_eps", layer_norm_eps), ("gamma_init", gamma_init)):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise TypeError(f"{name} must be a number, got {number!r}")
        if not (math.isfinite(gamma_init) and gamma_init > 0):
            raise ValueError(f"gamma_init must be positive and finite, got {gamma_init}")
        self.embed_dim = embed_dim
        self.kdim = kdim
        self.vdim = vdim
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.batch_first = batch_first
        self.gamma_init = gamma_init
        kv_dim = self.num_kv_heads * self.head_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias, **factory)
        self.k_proj = nn.Linear(kdim, kv_dim, bias, **factory)
        self.v_proj = nn.Linear(vdim, kv_dim, bias, **factory)
        self.norm = nn.LayerNorm(embed_dim, layer_norm_eps, **factory) if layer_norm else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, **factory)
        for projection, gain in (
            (self.q_proj, 1.0),
            (self.k_proj, 1.0),
            (self.v_proj, gamma_init),
            (self.out_proj, gamma_init),
        ):
            initialize(projection, gain * xavier_std(projection))

    def reset_parameters(self) -> None:
        """Draw MAGNETO's initial weights (arXiv:2210.06423, figure 2)."""
        for child in self.children():
            child.reset_parameters()  # type: ignore[operator]

    def extra_repr(self) -> str:
        shown = f"{self.embed_dim}, {self.num_heads}, segment_lengths={list(self.pattern.segment_lengths)}, "
        shown += f"dilation_rates={list(self.pattern.dilation_rates)}, batch_first={self.batch_first}"
        if self.num_kv_heads != self.num_heads:
            shown += f", num_kv_heads={self.num_kv_heads}"
        return shown

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        attend: Attend | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: ``[b, n, e]``, with ``batch_first=False`` ``[n, b, e]``; or ``[n, e]`` without a batch.
            key, value: the same shape, but for the widths ``kdim`` and ``vdim``; self-attention when left
                out.
            key_padding_mask: ``[b, n]``, or ``[n]`` without a batch, as for :func:`dilated_attention`. What
                ignored keys and values hold, NaN included, reaches no other token's output and no gradient.
                If ``query`` is ``key``, NaN and infinities in ignored queries count as 0 too; in a query of
                its own they are the caller's, and reach the gradients of the weights.
            need_weights: must be False.
            attn_mask: None, or a causal mask, or one that hides nothing, ``[n, n]`` or ``[b * h, n, n]``:
                bool, True = may not attend, or floating point, 0 and -inf (or -1e9 and the like). Beside
                ``is_causal=True`` it is not read, as in torch. In compiled and exported graphs a mask alone
                counts as causal, and one that is not raises RuntimeError when the graph runs.
            average_attn_weights: without effect, there being no weights.
            is_causal: a query sees no later token; ``attn_mask`` may be left out.
            attend: what maps the projected ``q [b, n, h, d]``, ``k``, ``v [b, n, h_kv, d]`` to
                ``[b, n, h, d]``, a ring attention for instance. Default: :func:`dilated_attention`. It must
                apply masks and causality itself: here all masks and ``is_causal`` must be left at their
                defaults, and padded tokens must be finite.

        Returns:
            The output in the shape of ``query``, and None instead of the weights.

        Raises:
            TypeError, ValueError: naming the argument and its values.
        """
        if need_weights:
            raise ValueError(
                "need_weights must be False, got True: the fused kernels never form the attention weights"
            )
        check_bool("is_causal", is_causal)
        key = query if key is None else key
        value = key if value is None else value
        self._check_inputs(query, key, value)
        if attend is not None and not (key_padding_mask is None and attn_mask is None and not is_causal):
            raise ValueError(
                "attend decides about masks itself: beside it key_padding_mask and attn_mask must be None, "
                "is_causal False"
            )
        of_itself, shared = query is key, value is key
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = query[None], key[None], value[None]
            if isinstance(key_padding_mask, Tensor):
                if key_padding_mask.dim() != 1:
                    raise ValueError(
                        f"key_padding_mask must be [seq] = [{query.shape[1]}] for a query without a batch, "
                        f"got {list(key_padding_mask.shape)}"
                    )
                key_padding_mask = key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if attn_mask is not None:
            is_causal = mask_is_causal(attn_mask, query, self.num_heads, hint=is_causal)
        if key_padding_mask is not None:
            key_padding_mask = ignored_keys(key_padding_mask, query)
            padding = key_padding_mask[..., None]
            # Attention leaves garbage out, but in the gradient of a weight 0 times NaN is NaN.
            query, key, value = autocast(query, key, value)
            key = _only_finite(key, padding)
            value = key if shared else _only_finite(value, padding)
            query = key if of_itself else query
        q, k, v = self._checked_project(query, key, value)
        if attend is not None:
            heads = attend(q, k, v)
        else:
            heads = dilated_attention(
                q,
                k,
                v,
                self.pattern.segment_lengths,
                self.pattern.dilation_rates,
                is_causal=is_causal,
                key_padding_mask=key_padding_mask,
            )
        if key_padding_mask is not None and of_itself:
            heads = _only_finite(heads, padding[..., None])  # the largest numbers overflow when projected
        out = self.merge(heads)
        if unbatched:
            return out[0], None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        layout = "batch, seq" if self.batch_first else "seq, batch"
        for name, tensor, width in (
            ("query", query, "embed_dim"),
            ("key", key, "kdim"),
            ("value", value, "vdim"),
        ):
            if not isinstance(tensor, Tensor) or tensor.is_nested:
                got = "a nested one" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(
                    f"{name} must be a dense tensor, got {got}; for rows of several lengths pass "
                    "key_padding_mask"
                )
            if not tensor.is_floating_point():
                raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
            if tensor.dim() not in (2, 3) or tensor.shape[-1] != getattr(self, width):
                e = f"{width}={getattr(self, width)}"
                raise ValueError(f"{name} must be [{layout}, {e}] or [seq, {e}], got {list(tensor.shape)}")
        if not query.shape[:-1] == key.shape[:-1] == value.shape[:-1]:
            raise ValueError(
                "query, key and value must have one length and batch, dilated attention is defined along one "
                f"sequence: got query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
            )

    def _checked_project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`project`; an input that has not the dtype of the parameters raises TypeError.

        Checked afterwards: autocast, hooks and quantised projections may make any dtype right.
        """
        try:
            return self.project(query, key, value)
        except RuntimeError as error:
            for name, tensor in (("query", query), ("key", key), ("value", value)):
                weight = getattr(getattr(self, f"{name[0]}_proj"), "weight", None)
                if "dtype" in str(error) and isinstance(weight, Tensor) and weight.dtype != tensor.dtype:
                    raise TypeError(
                        f"{name} must be {weight.dtype} like the parameters, got {tensor.dtype}: convert it "
                        "or the module with .to(dtype)"
                    ) from error
            raise

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries ``[b, n, h, d]``, keys and values ``[b, n, h_kv, d]`` of three ``[b, n, e]``."""
        q = self.q_proj(query).unflatten(2, (self.num_heads, self.head_dim))
        k = self.k_proj(key).unflatten(2, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(value).unflatten(2, (self.num_kv_heads, self.head_dim))
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """The output ``[b, n, e]`` of attended heads ``[b, n, h, d]``."""
        out = heads.flatten(2)
        out = out if self.norm is None else self.norm(out)
        return self.out_proj(out)  # type: ignore[no-any-return]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # state_dict is load_state_dict's own copy.
        for packed, kind in (("in_proj_weight", "weight"), ("in_proj_bias", "bias")):
            if f"{prefix}{packed}" in state_dict:
                parts = state_dict.pop(f"{prefix}{packed}").tensor_split(3)
                named = zip("qkv", parts, strict=True)
                state_dict.update({f"{prefix}{c}_proj.{kind}": part.clone() for c, part in named})
        for c in "qkv":  # a nn.MultiheadAttention with kdim or vdim
            if f"{prefix}{c}_proj_weight" in state_dict:
                state_dict[f"{prefix}{c}_proj.weight"] = state_dict.pop(f"{prefix}{c}_proj_weight")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
