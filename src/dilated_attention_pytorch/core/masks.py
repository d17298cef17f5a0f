"""The one function that turns a mask into what the kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

_IGNORED_BELOW = -1e4
"""At or below this an additive mask means "ignore": -inf, -1e9 and the least number of every dtype do."""


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
    ignored = mask <= _IGNORED_BELOW
    known = ignored | (mask == 0)
    message = f"a floating-point {name} must hold only 0 (keep) and -inf, or -1e9 and the like (ignore)"
    if torch.compiler.is_compiling():
        torch._assert_async(known.all(), message)
    elif not mask.is_meta and not bool(known.all()):
        raise ValueError(f"{message}, got {mask[~known][0].item()}")
    return ignored
