"""Finds copies that every call makes and need not. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from . import blame, source
from .calls_watch import FunctionCall
from .observations import CopyCause, RepeatedCopy
from .operators import Operator, Where
from .storages import key_of, nbytes

_LEAST_BYTES = 1024
_MATRIX_PRODUCTS = frozenset(("matmul", "rmatmul", "bmm", "mm", "addmm", "baddbmm"))
_VIEWS = frozenset(("transpose", "permute", "unsqueeze", "getitem", "t"))
_ARITHMETIC = frozenset(("add", "sub", "mul", "div", "truediv", "radd", "rsub", "rmul", "neg", "sum", "mean"))
_POINTWISE = frozenset(("exp", "tanh", "sigmoid", "relu", "gelu", "silu", "where", "clamp", "masked_fill"))
_ANY_STRIDES = _MATRIX_PRODUCTS | _VIEWS | _ARITHMETIC | _POINTWISE


@dataclass
class _Copy:
    cause: CopyCause
    where: Where
    calls: int = 0
    bytes: int = 0
    name: str = ""


@dataclass
class _Made:
    """A result of ``.contiguous()``."""

    where: Where
    bytes: int
    needed: bool = False
    read: bool = False


@dataclass
class Copies:
    """Observes operators and calls."""

    training: bool
    copies: dict[tuple[CopyCause, Where], _Copy] = field(default_factory=dict)
    _same: dict[tuple[Any, ...], _Copy] = field(default_factory=dict)
    """Copies of one tensor in one state: the place of the first, and all of them."""
    _made: dict[int, _Made] = field(default_factory=dict)

    def see(self, operator: Operator) -> None:
        if operator.name not in ("clone", "_to_copy") or operator.where is None:
            return
        copied, result, origin = operator.inputs[0], operator.outputs[0], operator.origins[0]
        cast = operator.name == "_to_copy"
        if origin is not None and origin.name:
            stored = copied.untyped_storage().nbytes() // copied.element_size()
            once = not self.training or not cast
            if once and result.numel() <= stored and not torch.is_autocast_enabled(copied.device.type):
                self._add("stored", operator.where, nbytes(result), origin.name)
        elif not cast and not copied.is_contiguous() and result.is_contiguous():
            version = 0 if copied.is_inference() else copied._version
            same = (key_of(copied), copied.storage_offset(), copied.shape, copied.stride(), version)
            copy = self._same.setdefault(same, _Copy("repeated", operator.where))
            copy.calls += 1
            copy.bytes += nbytes(result)

    def saw(self, call: FunctionCall) -> None:
        self._reads(call)
        if call.name != "contiguous" or not call.direct or call.is_view:
            return
        key, site = key_of(call.outputs[0]), call.sites[-1]
        if key is not None:
            self._made[key] = _Made((site.file, site.line), nbytes(call.outputs[0]))

    def _reads(self, call: FunctionCall) -> None:
        for tensor in call.inputs:
            made = self._made.get(key_of(tensor) or -1)
            if made is None:
                continue
            made.read |= call.name not in _VIEWS
            folds = call.name in _MATRIX_PRODUCTS and tensor.dim() > 3
            made.needed |= call.name not in _ANY_STRIDES or folds

    def returned(self, outputs: Iterable[torch.Tensor]) -> None:
        """What a caller gets may have to be contiguous."""
        for tensor in outputs:
            made = self._made.get(key_of(tensor) or -1)
            if made is not None:
                made.needed = True

    def _add(self, cause: CopyCause, where: Where, size: int, name: str = "", calls: int = 1) -> None:
        copy = self.copies.setdefault((cause, where), _Copy(cause, where, name=name))
        copy.calls += calls
        copy.bytes += size

    def found(self) -> tuple[RepeatedCopy, ...]:
        for made in self._made.values():
            if made.read and not made.needed:
                self._add("unneeded", made.where, made.bytes)
        for copy in self._same.values():
            if copy.calls > 1:
                self._add("repeated", copy.where, copy.bytes, calls=copy.calls)
        taken: dict[Where, _Copy] = {}
        for copy in self.copies.values():
            if copy.bytes >= _LEAST_BYTES:
                taken.setdefault(copy.where, copy)
        return tuple(
            RepeatedCopy(
                place=blame.place(*copy.where),
                cause=copy.cause,
                calls=copy.calls,
                bytes=copy.bytes,
                name=copy.name,
                statement=source.text(*copy.where),
            )
            for copy in taken.values()
        )
