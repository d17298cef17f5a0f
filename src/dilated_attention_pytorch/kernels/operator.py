"""The ``sdpa`` backend as one PyTorch operator, known to autograd, torch.compile and the FLOP counter.

Letters: b batch, n sequence, h query heads, g key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..core.pattern import DilatedPattern
from .sdpa import Problem, sdpa_backward, sdpa_forward

_ARGUMENTS = (
    "SymInt[] segment_lengths, SymInt[] dilation_rates, bool is_causal, float softmax_scale, "
    "Tensor? key_padding_mask, Tensor? positions"
)


def _problem(
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    is_causal: bool,
    softmax_scale: float,
    key_padding_mask: Tensor | None,
    positions: Tensor | None,
) -> Problem:
    branches = tuple(zip(segment_lengths, dilation_rates, strict=True))
    return Problem(branches, is_causal, softmax_scale, key_padding_mask, positions)


@torch.library.custom_op(
    "dilated_attention_pytorch::sdpa",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, {_ARGUMENTS}) -> (Tensor out, Tensor lse)",
)
def sdpa(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return out ``[b, n, h, d]`` and lse ``[b, h, n]``; arguments as in ``dilated_attention``."""
    return sdpa_forward(query, key, value, _problem(*arguments))


@sdpa.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    batch, seq, heads, _ = query.shape
    lse_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape), query.new_empty((batch, heads, seq), dtype=lse_dtype)


@torch.library.custom_op(
    "dilated_attention_pytorch::sdpa_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
    f"{_ARGUMENTS}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
)
def _sdpa_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return sdpa_backward(grad_out, query, key, value, out, lse, _problem(*arguments))


@_sdpa_backward.register_fake
def _(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *ctx.numbers, key_padding_mask, positions = inputs
    ctx.save_for_backward(query, key, value, *output, key_padding_mask, positions)


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse, key_padding_mask, positions = ctx.saved_tensors
    grads = _sdpa_backward(grad_out, query, key, value, out, lse, *ctx.numbers, key_padding_mask, positions)
    return (*grads, *[None] * 6)


def _refuse(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        "dilated_attention cannot be differentiated twice with backend='sdpa'; backend='reference' can"
    )


sdpa.register_autograd(_differentiate, setup_context=_save)
_sdpa_backward.register_autograd(_refuse)


def _forward_flops(
    query: Sequence[int],
    key: Sequence[int],
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    is_causal: bool,
) -> int:
    batch, seq, heads, head_dim = query
    pattern = DilatedPattern(tuple(segment_lengths), tuple(dilation_rates), heads, num_kv_heads=key[2])
    return pattern.flops(batch, seq, head_dim, is_causal)


@register_flop_formula(torch.ops.dilated_attention_pytorch.sdpa)
def _(
    query: Sequence[int], key: Sequence[int], value: Sequence[int],
    segment_lengths: Sequence[int], dilation_rates: Sequence[int], is_causal: bool, *rest: Any, **kwargs: Any,
) -> int:  # fmt: skip
    return _forward_flops(query, key, segment_lengths, dilation_rates, is_causal)


@register_flop_formula(torch.ops.dilated_attention_pytorch.sdpa_backward)
def _(
    grad_out: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int],
    out: Sequence[int], lse: Sequence[int],
    segment_lengths: Sequence[int], dilation_rates: Sequence[int], is_causal: bool, *rest: Any, **kwargs: Any,
) -> int:  # fmt: skip
    return _forward_flops(query, key, segment_lengths, dilation_rates, is_causal) * 5 // 2
