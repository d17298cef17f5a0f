"""PyTorch's fused attention kernels behind one contract; what each of them gets wrong is mended here.

Letters: B batch, H query heads, G key/value heads (G divides H), N query rows, M key rows, D head dimension.

The operators called here are what ``torch.nn.functional.scaled_dot_product_attention`` dispatches to. Only
they hand out the log-sum-exp, and only their backward can be fed with a merged output and a merged
log-sum-exp (FlashAttention-2, arXiv:2307.08691, algorithm 2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import largest_score

_aten = torch.ops.aten
_INF = float("inf")

# Up to here a product with a number of a sane size does not overflow.
_HARMLESS = 1e4


def fused_forward(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scale: float, ignored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of N query rows over M key rows.

    Args:
        query: ``[B, H, N, D]``, any strides.
        key, value: ``[B, G, M, D]``.
        is_causal: row i sees rows 0 .. i; N and M must be equal.
        scale: factor on the dot products.
        ignored: bool ``[B, M]``, True for keys nobody sees, or ``[B, N, M]``, for keys a query does not see
            (not with ``is_causal``). Keys that no query sees, and their values, may hold anything.

    Returns:
        out ``[B, H, N, D]`` and lse ``[B, H, N]`` (float32, float64 for float64); a query that sees no key
        gives 0 and -inf.
    """
    _check_rows(query, key, is_causal, ignored)
    bias = None if ignored is None else _bias(ignored, query)
    key, value = _without_ignored(key, value, ignored)
    call = _forward_cuda if query.is_cuda else _forward_cpu
    out, lse = call(query, key, value, is_causal, scale, bias)
    if ignored is not None:
        seen = ~ignored
        seen = seen.cumsum(-1) > 0 if is_causal else seen.any(-1, keepdim=ignored.dim() == 2)
        blind = ~seen[:, None]
        # The CPU kernel reports 0 for a row without keys.
        out = out.masked_fill_(blind[..., None], 0.0)
        lse = lse.masked_fill_(blind, -_INF)
    return out, lse


def fused_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    is_causal: bool,
    scale: float,
    ignored: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value given ``out [B, H, N, D]`` and ``lse [B, H, N]``.

    ``out`` and ``lse`` may belong to a softmax over more keys than these: then the result is these keys'
    part of the gradient. Arguments as in :func:`fused_forward`. A query whose lse is no number up to
    :func:`largest_score` adds nothing where its ``grad_out`` is 0 (on CUDA: if ``ignored`` is given).
    """
    _check_rows(query, key, is_causal, ignored)
    bias = None if ignored is None else _bias(ignored, query)
    key, value = _without_ignored(key, value, ignored)
    if ignored is not None or not query.is_cuda:
        query, out, lse = _without_idle(grad_out, query, out, lse)
    # exp(score - inf) = 0 is the right weight of a row without keys; the kernels make NaN of -inf.
    lse = lse.masked_fill(lse == -_INF, _INF)
    call = _backward_cuda if query.is_cuda else _backward_cpu
    return call(grad_out, query, key, value, out, lse, is_causal, scale, bias)


def _check_rows(query: Tensor, key: Tensor, is_causal: bool, ignored: Tensor | None) -> None:
    # The CPU kernel divides by zero, and ends the process, on an empty sequence.
    assert 0 not in (query.numel(), key.numel()), f"no rows for a fused kernel: {query.shape}, {key.shape}"
    assert not is_causal or query.shape[2] == key.shape[2]
    assert not is_causal or ignored is None or ignored.dim() == 2


def _bias(ignored: Tensor, query: Tensor) -> Tensor:
    """``[B, 1, 1 or N, M]``: 0, and -inf for ignored keys, in the query's dtype (kernels misread others)."""
    if ignored.dim() == 2:
        ignored = ignored[:, None]
    batch, queries, rows = ignored.shape
    # On CUDA the rows of a bias must be aligned to 16 elements.
    padded = query.new_zeros(batch, 1, queries, -(-rows // 16) * 16 if query.is_cuda else rows)
    bias = padded[..., :rows]
    return bias.masked_fill_(ignored[:, None], -_INF)


def _without_ignored(key: Tensor, value: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
    """``key`` and ``value`` with 0 for what could turn the weight 0 of an ignored key into NaN."""
    if ignored is None:
        return key, value
    unseen = ignored if ignored.dim() == 2 else ignored.all(1)

    def without(x: Tensor) -> Tensor:
        harmless = _are_harmless(x.transpose(1, 2), unseen)
        return x if harmless else x.masked_fill(unseen[:, None, :, None], 0.0)

    return without(key), without(value)


def _without_idle(grad_out: Tensor, query: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``query``, ``out`` and ``lse`` without what could turn the part 0 of a query into NaN."""
    strange = ~(lse.abs() <= largest_score(lse.dtype))
    # Without keys lse is -inf, which is made right in any case.
    if _are_harmless(query, strange) and bool((lse[strange] == -_INF).all()):
        return query, out, lse
    idle = strange & (grad_out == 0).all(-1)
    query, out = (x.masked_fill(idle[..., None], 0.0) for x in (query, out))
    return query, out, lse.masked_fill(idle, _INF)


def _are_harmless(x: Tensor, rows: Tensor) -> bool:
    """Whether no product with these rows overflows; False on CUDA, where the host would have to wait."""
    # To look at some rows is cheaper than to copy all.
    return not x.is_cuda and bool((x[rows].abs() <= _HARMLESS).all())


def _unit_stride(*tensors: Tensor) -> list[Tensor]:
    # The CPU kernel reads garbage, and CUDA's refuse, where the last dimension is not contiguous.
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _forward_cpu(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    query, key, value = _unit_stride(query, key, value)
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale
    )
    return out, lse


def _backward_cpu(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_out, query, key, value, out = _unit_stride(grad_out, query, key, value, out)
    grads: tuple[Tensor, Tensor, Tensor] = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, key, value, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale
    )
    return grads


def _uses_flash(query: Tensor, bias: Tensor | None) -> bool:
    half = query.dtype in (torch.float16, torch.bfloat16)
    modern = torch.cuda.get_device_capability(query.device) >= (8, 0)
    return half and modern and bias is None and query.shape[-1] <= 256


def _aligned(*tensors: Tensor) -> list[Tensor]:
    """What CUDA's kernels take: head_dim in multiples of 8, rows that start at multiples of 16 bytes."""
    width = tensors[0].shape[-1]
    if width % 8:  # zeros change no dot product
        return [F.pad(x, (0, -width % 8)) for x in tensors]
    return [x if _is_aligned(x) else x.clone(memory_format=torch.contiguous_format) for x in tensors]


def _is_aligned(x: Tensor) -> bool:
    starts = (x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:-1]))
    return x.stride(-1) == 1 and all(start % 16 == 0 for start in starts)


def _forward_cuda(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    (_, heads, rows, width), kv_heads = query.shape, key.shape[1]
    query, key, value = _aligned(query, key, value)
    if _uses_flash(query, bias):
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal, False, scale=scale
        )
    else:
        key, value = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value))
        bias = None if bias is None else bias.expand(-1, heads, rows, -1)
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, 0.0, is_causal, scale=scale
        )
    return out[..., :width], lse[..., :rows]


def _backward_cuda(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (_, heads, rows, width), kv_heads = query.shape, key.shape[1]
    grad_out, query, key, value, out = _aligned(grad_out, query, key, value, out)
    seed = torch.zeros(2, dtype=torch.uint64, device=query.device)  # no dropout: never read
    if _uses_flash(query, bias):
        grads = _aten._scaled_dot_product_flash_attention_backward(
            grad_out, query, key, value, out, lse.contiguous(), None, None, rows, key.shape[2], 0.0,
            is_causal, seed, seed, scale=scale,
        )  # fmt: skip
    else:
        group = heads // kv_heads
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        bias = None if bias is None else bias.expand(-1, heads, rows, -1)
        # This kernel keeps its lse in rows of a multiple of 32.
        lse = F.pad(lse, (0, -rows % 32), value=_INF)
        seed, offset = seed[0], seed[1]
        grad_query, *grad_kv, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad_out, query, key, value, bias, out, lse, seed, offset, 0.0, [True, True, True, False],
            is_causal, scale=scale,
        )  # fmt: skip
        grads = (grad_query, *(x.unflatten(1, (kv_heads, group)).sum(2) for x in grad_kv))
    grad_query, grad_key, grad_value = (x[..., :width] for x in grads)
    return grad_query, grad_key, grad_value
