"""Which matrix products are attention's: those before and after a softmax. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .moved_bytes import memory_of

_SOFTMAX = ("aten::_softmax", "aten::_safe_softmax", "aten::exp", "aten::exp_")
"""``exp``: a softmax written out."""
_Marks = MutableMapping[torch.Tensor, frozenset[int]]
"""Forgets a tensor when it is freed."""


class Scores:
    """Follows products into a softmax and its result into products.

    Both are followed as long as the number of elements stays: through scaling, masks, views, dropout,
    casts and the division by the sum. Attention is found at a product of a softmax's result with what is
    not a parameter, so neither a classifier's softmax nor a router's counts.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._parameters = {memory_of(p) for p in parameters}
        self._products: _Marks = WeakTensorKeyDictionary()
        """Numbers of the products from which a tensor came without a softmax between."""
        self._softmaxes: _Marks = WeakTensorKeyDictionary()
        """The same, with a softmax between."""

    def attention_products(
        self,
        number: int,
        name: str,
        operands: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        *,
        is_product: bool,
    ) -> frozenset[int]:
        """Take note of an operator; numbers of the products now known to be attention's.

        Args:
            number: of the operator, in order.
            name: as "aten::bmm".
        """
        if not results:
            return frozenset()
        result = results[0]
        if is_product:
            self._products[result] = frozenset((number,))
            return self._found(number, operands)
        kept = [t for t in operands if t.numel() == result.numel() and t.is_floating_point()]
        before = _union(self._products.get(t) for t in kept)
        after = _union(self._softmaxes.get(t) for t in kept)
        if name in _SOFTMAX and after is None:
            before, after = None, before or frozenset()
        for marks, found in ((self._products, before), (self._softmaxes, after)):
            if found is not None:
                marks[result] = found
            else:
                marks.pop(result, None)  # changed in place
        return frozenset()

    def _found(self, number: int, operands: Sequence[torch.Tensor]) -> frozenset[int]:
        for weights in operands:
            sources = self._softmaxes.get(weights)
            others = [t for t in operands if t is not weights and t.dim() > 1]
            if sources is not None and not any(memory_of(t) in self._parameters for t in others):
                return frozenset((number,)) | sources
        return frozenset()


def _union(marks: Iterable[frozenset[int] | None]) -> frozenset[int] | None:
    """None if there is none."""
    found = [mark for mark in marks if mark is not None]
    return frozenset().union(*found) if found else None
