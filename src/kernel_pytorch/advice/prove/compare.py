"""Whether a candidate gives what the original gives. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import dense, norms, same_non_finite
from .leaves import leaves
from .leaves import tensors_of as tensors_of

TIMES_ORIGINAL = 4.0
"""Of the original's own error, which a lossless change may have."""
NUM_EPS = 16
"""Units of the last place that a lossless change may be off, however exact the original is."""
SMALL = 1e-3
"""Norm of a gradient over that of all, below which its error is taken relative to all."""
NO_REFERENCE = 0.5
"""Error of the original at which the reference is another function, as where a mask is -finfo.max."""


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


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """The comparison of one tensor."""

    path: str
    error: float
    original_error: float | None
    allowed: float

    @property
    def excess(self) -> float:
        """Error over what is allowed; above 1 it differs."""
        if self.error == 0:
            return 0.0
        return self.error / self.allowed if self.allowed else math.inf


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
        one = _compare(path or "the output", wide.get(path), value, got[path], lossless, max_error)
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
    that may be off by 16 eps of the whole gradient's norm where nothing more precise is known of it.

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
        one = _compare(path, other, value, candidate[path], lossless, max_error, whole)
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


def _compare(
    path: str,
    reference: Any,
    original: Any,
    candidate: Any,
    lossless: bool,
    max_error: float,
    whole: float = 0.0,
) -> _Leaf | str | None:
    """One leaf, what differs of it, or None where it is equal and no floating tensor.

    Args:
        whole: norm of all tensors, of which 1e-3 counts as the least norm of one.
    """
    number = type(original) in (float, complex) and type(candidate) is type(original)
    eps = torch.finfo(torch.float32).eps
    if number:
        reference = torch.tensor(reference) if type(reference) is type(original) else None
        original, candidate = torch.tensor(original), torch.tensor(candidate)
    if not isinstance(original, torch.Tensor) or not isinstance(candidate, torch.Tensor):
        return _compare_objects(path, original, candidate)
    differs = _compare_kinds(path, original, candidate, lossless)
    if differs:
        return differs
    if not number and (original.is_floating_point() or original.is_complex()):
        eps = torch.finfo(original.dtype).eps
    first, second = dense(original), dense(candidate)
    if first.shape != second.shape:
        return f"{path}: {second.numel()} values instead of {first.numel()}"
    if not (first.is_floating_point() or first.is_complex()):
        unequal = int((first != second.to(first.device)).sum())
        return f"{path}: {unequal} of {first.numel()} values differ" if unequal else None
    if not same_non_finite(first, second):
        return f"{path}: NaN or infinite in other places"
    wide = dense(reference) if isinstance(reference, torch.Tensor) else None
    own = None
    if wide is not None and wide.shape == first.shape:
        own = _relative(*norms(first, wide), whole)
    if own is None or not own <= NO_REFERENCE:
        wide, own = first, None
    assert wide is not None
    difference, size = norms(second, wide)
    allowed = max_error
    if lossless:
        allowed = max(TIMES_ORIGINAL * (own or 0.0), NUM_EPS * eps)
        if size < SMALL * whole:
            allowed = max(allowed, NUM_EPS * eps / SMALL)
    return _Leaf(path=path, error=_relative(difference, size, whole), original_error=own, allowed=allowed)


def _compare_objects(path: str, original: Any, candidate: Any) -> str | None:
    if isinstance(original, torch.Tensor) or isinstance(candidate, torch.Tensor):
        return f"{path}: {type(candidate).__name__} instead of {type(original).__name__}"
    same = original is candidate or type(original) is type(candidate)
    if isinstance(original, (str, bytes, int, range)) or original is None or candidate is None:
        same = original == candidate
    return None if same else f"{path}: {candidate!r:.40} instead of {original!r:.40}"


def _compare_kinds(path: str, original: torch.Tensor, candidate: torch.Tensor, lossless: bool) -> str:
    if original.shape != candidate.shape:
        return f"{path}: shape {tuple(candidate.shape)} instead of {tuple(original.shape)}"
    floats = original.is_floating_point() and candidate.is_floating_point()
    if original.dtype != candidate.dtype and (lossless or not floats):
        return f"{path}: {candidate.dtype} instead of {original.dtype}"
    return ""


def _relative(difference: float, size: float, whole: float) -> float:
    size = max(size, SMALL * whole)
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


def _worst(known: list[_Leaf]) -> Comparison:
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
