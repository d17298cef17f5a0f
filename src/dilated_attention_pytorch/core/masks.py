"""The functions that turn a mask into what the kernels take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_IGNORED_BELOW = -1e4
"""At or below this an additive mask means "ignore": -inf, -1e9 and the least number of every dtype do."""

_ALLOWED = "a floating-point {} must hold only 0 (keep) and -inf, or -1e9 and the like (ignore)"


def ignored_keys(mask: Tensor, like: Tensor, name: str = "key_padding_mask") -> Tensor:
    """The keys that nobody sees: bool ``[b, n]``, True = ignore.

    Args:
        mask: ``[b, n]``: bool or integer, where True or not 0 means ignore; or floating point to be added to
            the scores, where 0 means keep, and -inf, -1e9 or the least number of a dtype mean ignore.
        like: ``[b, n, ...]``, the sequence that the mask belongs to.
        name: the argument that ``mask`` was given as.

    Raises:
        TypeError: ``mask`` is no tensor of such a dtype.
        ValueError: its shape or device is not that of ``like``, or it holds another number. In a compiled or
            exported graph, where no number is known, the last becomes a RuntimeError when the graph runs.
    """
    _check_dtype_and_device(mask, like, name)
    if mask.shape != like.shape[:2]:
        raise ValueError(f"{name} must be [batch, seq] = {list(like.shape[:2])}, got {list(mask.shape)}")
    return _as_bool(mask, name)


def mask_is_causal(
    mask: Tensor, like: Tensor, num_heads: int, *, hint: bool = False, name: str = "attn_mask"
) -> bool:
    """Whether an attention mask is the causal one, True, or hides nothing, False; no other is supported.

    Args:
        mask: ``[n, n]`` or ``[b * h, n, n]``, in any form that :func:`ignored_keys` takes.
        like: ``[b, n, ...]``, the sequence that the mask belongs to.
        num_heads: h.
        hint: the caller says that the mask is causal: its values are not read.
        name: the argument that ``mask`` was given as.

    Raises:
        TypeError: ``mask`` is no tensor of such a dtype.
        ValueError: its shape or device does not fit, or it is neither of the two. In a compiled or exported
            graph, where no number is known, the mask counts as causal, and one that is not is a RuntimeError
            when the graph runs.
    """
    _check_dtype_and_device(mask, like, name)
    batch, seq = like.shape[:2]
    # Not "in": Dynamo finds a static shape unequal to a symbolic one there.
    if mask.shape != (seq, seq) and mask.shape != (batch * num_heads, seq, seq):
        raise ValueError(
            f"{name} must be [seq, seq] = {[seq, seq]} or [batch * num_heads, seq, seq] = "
            f"{[batch * num_heads, seq, seq]}, got {list(mask.shape)}"
        )
    if hint or mask.is_meta:
        return True
    hidden = _as_bool(mask, name)
    position = torch.arange(seq, device=mask.device)
    wrong = hidden != (position[None, :] > position[:, None])
    wanted = f"{name} must be causal or hide nothing, got"
    reason = (
        "segment_lengths and dilation_rates decide who attends to whom. For padding pass key_padding_mask"
    )
    if torch.compiler.is_compiling():
        message = f"{wanted} shape {list(mask.shape)}: {reason}; in a compiled graph {name} must be causal"
        torch._assert_async(~wrong.any(), message)
        return True
    if not bool(wrong.any()):
        return True
    if bool(hidden.any()):
        first = tuple(wrong.nonzero()[0].tolist())
        what = "hides what a causal mask shows" if bool(hidden[first]) else "shows what a causal mask hides"
        raise ValueError(f"{wanted} shape {list(mask.shape)}, whose entry {list(first)} {what}: {reason}")
    return False


def _check_dtype_and_device(mask: Tensor, like: Tensor, name: str) -> None:
    if not isinstance(mask, Tensor) or mask.is_complex() or mask.is_nested:
        got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        if isinstance(mask, Tensor) and mask.is_nested:
            got = "a nested one"
        raise TypeError(f"{name} must be a bool, integer or floating-point tensor, got {got}")
    if mask.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the sequence, got {mask.device}")


def _as_bool(mask: Tensor, name: str) -> Tensor:
    """``mask`` as bool, True = ignore."""
    if not mask.is_floating_point():
        return mask if mask.dtype == torch.bool else mask != 0
    if not torch.compiler.is_compiling():
        return _ignored_by_value(mask.detach(), name)  # type: ignore[no-any-return]
    ignored, known = _ignored_and_known(mask)
    torch._assert_async(known.all(), _ALLOWED.format(name))
    return ignored


def _ignored_and_known(mask: Tensor) -> tuple[Tensor, Tensor]:
    ignored = mask <= _IGNORED_BELOW
    return ignored, ignored | (mask == 0)


# An operator, because vmap and fake tensors let an operator see values where there are any.
@torch.library.custom_op("dilated_attention_pytorch::ignored_by_value", mutates_args=())
def _ignored_by_value(mask: Tensor, name: str) -> Tensor:
    ignored, known = _ignored_and_known(mask)
    if not bool(known.all()):
        raise ValueError(f"{_ALLOWED.format(name)}, got {mask[~known][0].item()}")
    return ignored


@_ignored_by_value.register_fake
def _(mask: Tensor, name: str) -> Tensor:
    return torch.empty_like(mask, dtype=torch.bool)


@_ignored_by_value.register_vmap
def _(info: Any, in_dims: tuple[int, None], mask: Tensor, name: str) -> tuple[Tensor, int]:
    return _ignored_by_value(mask, name), in_dims[0]
