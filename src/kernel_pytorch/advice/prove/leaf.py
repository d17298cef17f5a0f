"""The comparison of one leaf of the outputs. Imports torch."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import torch

from .errors import dense, norms, same_non_finite
from .leaves import OPAQUE

TIMES_ORIGINAL = 4.0
"""Of the original's own error, which a lossless change may have."""
NUM_EPS = 16
"""Units of the last place that a lossless change may be off, however exact the original is."""
SMALL = 1e-3
"""Norm of a gradient over that of all, below which its error is taken relative to all."""
NO_REFERENCE = 0.5
"""Error of the original at which the reference is another function, as where a mask is -finfo.max."""

_COMPARABLE = (str, bytes, int, float, complex, range, enum.Enum)


@dataclass(frozen=True, kw_only=True)
class Leaf:
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


def compare_leaf(
    path: str,
    reference: Any,
    original: Any,
    candidate: Any,
    lossless: bool,
    max_error: float,
    whole: float = 0.0,
) -> Leaf | str | None:
    """One leaf, what differs of it, or None where it is equal and no floating tensor.

    Args:
        whole: norm of all tensors, of which 1e-3 counts as the least norm of one.
    """
    if type(original) is type(candidate):
        reference, original, candidate = map(as_tensor, (reference, original, candidate))
    number = type(original) in (float, complex) and type(candidate) is type(original)
    eps = torch.finfo(torch.float32).eps
    if number:
        kind = torch.float64 if type(original) is float else torch.complex128
        reference = torch.tensor(reference, dtype=kind) if type(reference) is type(original) else None
        original, candidate = (torch.tensor(one, dtype=kind) for one in (original, candidate))
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
        if size < SMALL * whole:  # rounding of terms as large as the whole, of which it is the sum
            allowed = max(allowed, (NUM_EPS if own is None else 1) * eps / SMALL)
    return Leaf(path=path, error=_relative(difference, size, whole), original_error=own, allowed=allowed)


def _compare_objects(path: str, original: Any, candidate: Any) -> str | None:
    if isinstance(original, torch.Tensor) or isinstance(candidate, torch.Tensor):
        return f"{path}: {type(candidate).__name__} instead of {type(original).__name__}"
    if same_object(original, candidate):
        return None
    return f"{path}: {candidate!r:.40} instead of {original!r:.40}"


def same_object(first: Any, second: Any) -> bool:
    """Whether two leaves that are no tensors are equal; what cannot be compared is not."""
    if first is second or (isinstance(first, _COMPARABLE) and isinstance(second, _COMPARABLE)):
        return first is second or bool(first == second)
    if type(first) is not type(second):
        return False
    by_identity = not any("__eq__" in vars(kind) for kind in type(first).__mro__[:-1])
    if isinstance(first, OPAQUE) or (by_identity and hasattr(first, "__dict__")):
        return True  # each call may make its own, and all that it has is compared
    try:
        return bool(first == second)
    except Exception:  # as of arrays, which have no one answer
        return False


def as_tensor(value: Any) -> Any:
    """Numbers of NumPy as a tensor, a copy; all else as it is."""
    if type(value).__module__ != "numpy" or getattr(getattr(value, "dtype", None), "kind", "") not in "biufc":
        return value
    try:
        return torch.tensor(value)
    except TypeError:  # as long double
        return value


def _compare_kinds(path: str, original: torch.Tensor, candidate: torch.Tensor, lossless: bool) -> str:
    if original.shape != candidate.shape:
        return f"{path}: shape {tuple(candidate.shape)} instead of {tuple(original.shape)}"
    floating = original.is_floating_point() and candidate.is_floating_point()
    alike = floating or (original.is_complex() and candidate.is_complex())
    if original.dtype != candidate.dtype and (lossless or not alike):
        return f"{path}: {candidate.dtype} instead of {original.dtype}"
    return ""


def _relative(difference: float, size: float, whole: float) -> float:
    size = max(size, SMALL * whole)
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf
