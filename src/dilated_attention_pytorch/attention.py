"""Dilated attention on one device: the function and its module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor, nn

from .core.autocast import autocast
from .core.masks import ignored_keys
from .core.pattern import DilatedPattern
from .core.validation import (
    check_bool,
    check_branches,
    check_no_dropout,
    check_positions,
    check_qkv,
    check_softmax_scale,
    checked_positions,
)
from .kernels.backends import Backend, choose_backend
from .kernels.operator import sdpa, triton
from .kernels.reference import reference_attention

__all__ = ["DilatedAttention", "dilated_attention"]


@overload
def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    key_padding_mask: Tensor | None = ...,
    positions: Tensor | None = ...,
    backend: Backend = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...
@overload
def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    key_padding_mask: Tensor | None = ...,
    positions: Tensor | None = ...,
    backend: Backend = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    positions: Tensor | None = None,
    backend: Backend = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """LongNet's dilated attention (arXiv:2307.02486, equations 6 to 10), exact forward and backward.

    Each branch ``(w, r)`` cuts the sequence into segments of ``w`` and keeps, for head ``j``, the positions
    ``p`` with ``(p % w) % r == j % r``. The output is one softmax over all keys that the branches offer; a
    key offered twice counts twice. A (query, head) that no branch serves gives 0.

    Args:
        query: ``[b, n, h, d]``, floating point.
        key, value: ``[b, n, h_kv, d]``; ``h_kv`` divides ``h``, query head ``j`` uses head
            ``j // (h // h_kv)``.
        segment_lengths: ``w`` of each branch; may exceed ``n``, need not divide it.
        dilation_rates: ``r`` of each branch.
        is_causal: no query sees a later token.
        softmax_scale: factor on the dot products; default ``d ** -0.5``.
        key_padding_mask: ``[b, n]``, keys that nobody sees: bool or integer, True or not 0 = ignore, or
            floating point, 0 = keep, -inf (or -1e9 and the like) = ignore.
        positions: int64 ``[n]`` or ``[b, n]``, distinct, not negative: the rank that decides membership
            instead of the index. Causality stays with the order in the tensor.
        backend: ``"triton"`` kernels for GPUs, ``"sdpa"`` PyTorch's fused kernels, ``"reference"`` a dense
            mask, ``"auto"`` the first of these that can run and suits the pattern.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        out ``[b, n, h, d]`` in the dtype of ``query``; with ``return_lse`` also lse ``[b, h, n]``, float32
        (float64 for float64), -inf where nothing is served, not differentiable.

    What ignored keys and their values hold, NaN and inf included, reaches no result. A padded query is
    computed like any other; if its output gets no gradient, it adds none.

    Under ``torch.autocast`` the inputs are cast to its dtype, as for ``scaled_dot_product_attention``.

    Large scores cost gradients their digits: in the backward of the fused backends a key's weight has a
    relative error of up to about ``score * eps``; measured in float32 were 1e-3 at scores of 2^16 and 2.6e-2
    at 2^20. Outputs do not suffer, nor do gradients with ``backend="reference"``.

    It works under ``torch.func.grad``, ``vmap``, ``jacrev`` and their compositions, and gives shapes for
    tensors on the device "meta". ``torch.compile`` does not trace it there: its graph breaks, which PyTorch
    itself answers with an AssertionError for ``grad`` and ``jacrev`` with ``torch.compile(backend="eager")``;
    other compiler backends, and ``backend="reference"``, are free of that. The fused
    backends have no forward mode (``jvp``, ``jacfwd``) and no second derivative, and say so;
    ``backend="reference"`` has both. In a program of ``torch.export``, and under ``functionalize``, the fused
    backends are differentiated by ``backward`` and ``torch.autograd.grad`` only; ``torch.func.grad`` is
    refused.

    Raises:
        TypeError, ValueError: naming the argument and its values.
        NotImplementedError: forward mode through a fused backend; ``torch.func.grad`` of an exported program.
        ValueError: in the backward on a CPU, scores beyond 2^20 (float64: 2^49), whose gradients would be
            meaningless. On a GPU this is not checked.
    """
    query, key, value = autocast(query, key, value)
    check_qkv(query, key, value)
    batch, seq, heads, head_dim = query.shape
    pattern = DilatedPattern(
        *check_branches(segment_lengths, dilation_rates), heads, num_kv_heads=key.shape[2]
    )
    if key_padding_mask is not None:
        key_padding_mask = ignored_keys(key_padding_mask, query)
    if positions is not None:
        check_positions(positions, query)
        positions = positions.expand(batch, seq)
    check_bool("is_causal", is_causal)
    check_softmax_scale(softmax_scale)
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale

    chosen = choose_backend(
        backend, query.device, query.dtype, head_dim=head_dim, branches=pattern.branches, seq=seq
    )
    if chosen != "reference":
        out, lse = (sdpa if chosen == "sdpa" else triton)(
            query,
            key,
            value,
            pattern.segment_lengths,
            pattern.dilation_rates,
            is_causal,
            scale,
            key_padding_mask,
            positions,
        )
    else:
        if positions is not None:
            positions = checked_positions(positions)
        out, lse = reference_attention(
            query,
            key,
            value,
            pattern,
            is_causal=is_causal,
            softmax_scale=scale,
            key_padding_mask=key_padding_mask,
            positions=positions,
        )
    return (out, lse.detach()) if return_lse else out


class DilatedAttention(nn.Module):
    """:func:`dilated_attention` as a module without parameters.

    Args:
        segment_lengths: ``w`` of each branch.
        dilation_rates: ``r`` of each branch.
        softmax_scale: factor on the dot products; default ``head_dim ** -0.5``.
        attention_dropout: must be 0.0.

    Raises:
        TypeError, ValueError: naming the argument and its values.
    """

    def __init__(
        self,
        segment_lengths: Sequence[int],
        dilation_rates: Sequence[int],
        softmax_scale: float | None = None,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.segment_lengths, self.dilation_rates = check_branches(segment_lengths, dilation_rates)
        check_no_dropout("attention_dropout", attention_dropout)
        check_softmax_scale(softmax_scale)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Map query ``[b, n, h, d]`` and key, value ``[b, n, h_kv, d]`` to ``[b, n, h, d]``.

        ``key_padding_mask`` is bool ``[b, n]``, True = ignore.
        """
        return dilated_attention(
            query,
            key,
            value,
            self.segment_lengths,
            self.dilation_rates,
            is_causal=is_causal,
            softmax_scale=self.softmax_scale,
            key_padding_mask=key_padding_mask,
        )

    def extra_repr(self) -> str:
        return f"segment_lengths={list(self.segment_lengths)}, dilation_rates={list(self.dilation_rates)}"
