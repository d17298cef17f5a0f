"""The one function that turns a mask into what the kernels take."""

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
    if not isinstance(mask, Tensor) or mask.is_complex():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool, integer or floating-point tensor, got {got}")
    if mask.shape != like.shape[:2]:
        raise ValueError(f"{name} must be [batch, seq] = {list(like.shape[:2])}, got {list(mask.shape)}")
    if mask.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the sequence, got {mask.device}")
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
