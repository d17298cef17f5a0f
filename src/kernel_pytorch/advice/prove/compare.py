"""Whether a candidate gives what the original gives. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import dense, norms
from .leaf import Leaf, compare_leaf
from .leaves import leaves
from .leaves import tensors_of as tensors_of


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far a candidate is from the reference."""

    error: float | None
    """RMS of the difference over RMS of the reference, of the worst tensor: the one whose error is the
    greatest, compared with what is allowed. None: there is no floating tensor, or something is missing."""
    original_error: float | None
    """The same of the original, of that tensor. None: the original is the reference."""
    equal: bool
    reason: str = ""
    """What differs, with its path; "": nothing."""
    worst: str = ""
    """Path of the worst tensor."""


def compare_outputs(
    reference: Any,
    original: Any,
    candidate: Any,
    *,
    lossless: bool = True,
    max_error: float = 0.01,
) -> Comparison:
    """Compare any nesting of tensors, numbers, strings and None, in dataclasses and other objects too.

    Infinities and NaN must be in the same places; integers, booleans and all else must be equal. A lossless
    change may have 4 times the original's error, or 16 eps of the dtype; it must keep every dtype. Another
    may have ``max_error``, and other floating dtypes.

    Args:
        reference: the outputs in higher precision; None: the original's are it.
        original: of the unchanged model; None: the reference's are it.
    """
    expected = dict(leaves(original if original is not None else reference))
    got = dict(leaves(candidate))
    wide = dict(leaves(reference)) if reference is not None and original is not None else {}
    reason = _structure(expected, got)
    if reason:
        return Comparison(error=None, original_error=None, equal=False, reason=reason)
    known = []
    for path, value in expected.items():
        one = compare_leaf(path or "the output", wide.get(path), value, got[path], lossless, max_error)
        if isinstance(one, str):
            return Comparison(error=None, original_error=None, equal=False, reason=one, worst=path)
        known += [one] if one is not None else []
    return _worst(known)


def compare_gradients(
    reference: Mapping[str, torch.Tensor] | None,
    original: Mapping[str, torch.Tensor],
    candidate: Mapping[str, torch.Tensor],
    *,
    lossless: bool = True,
    max_error: float = 0.01,
) -> Comparison:
    """Compare gradients by name of the parameter or input.

    An error is relative to the larger of the gradient's norm and 1e-3 of the whole gradient's: what is 0 up
    to rounding, as of the bias of a key projection, has no digit in common with anything. A gradient below
    that may be off by an eps of the whole gradient's norm, or 16 where there is no reference.

    Args:
        reference: in higher precision; None: the original's are it.
    """
    for path in original:
        if path not in candidate:
            return Comparison(error=None, original_error=None, equal=False, reason=f"{path} has no gradient")
    for path in candidate:
        if path not in original:
            why = f"{path} has a gradient, and none in the original"
            return Comparison(error=None, original_error=None, equal=False, reason=why)
    wide = original if reference is None else reference
    whole = math.sqrt(sum(norms(g, g)[1] ** 2 for g in map(dense, wide.values())))
    known = []
    for path, value in original.items():
        other = None if reference is None else reference.get(path)
        one = compare_leaf(path, other, value, candidate[path], lossless, max_error, whole)
        if isinstance(one, str):
            return Comparison(error=None, original_error=None, equal=False, reason=one, worst=path)
        known += [one] if one is not None else []
    return _worst(known)


def _structure(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """What is missing or more; "": nothing."""
    for path in expected:
        if path not in got:
            return f"{path or 'the output'} is missing"
    for path in got:
        if path not in expected:
            return f"{path or 'the output'} is not in the original's output"
    return ""


def _worst(known: list[Leaf]) -> Comparison:
    if not known:
        return Comparison(error=None, original_error=None, equal=True)
    worst = max(known, key=lambda leaf: (leaf.excess, leaf.error))
    equal = worst.excess <= 1
    reason = "" if equal else f"{worst.path}: error {worst.error:.2g}, allowed {worst.allowed:.2g}"
    return Comparison(
        error=worst.error,
        original_error=worst.original_error,
        equal=equal,
        reason=reason,
        worst=worst.path,
    )
