"""Finds tensors that a call computes from sizes alone, as causal masks. Imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from . import blame, source
from .observations import RebuiltConstant
from .operators import Operator, Where
from .storages import nbytes

_LEAST_ELEMENTS = 64
_MADE = ("ones", "zeros", "full", "empty")
_FILLS = {"fill", "fill_", "zero_", "empty_strided", "new_empty_strided"}
_FILLS |= {form.format(name) for name in _MADE for form in ("{}", "{}_like", "new_{}")}
_FACTORIES = _FILLS | {"arange", "eye", "linspace", "logspace", "tril_indices", "triu_indices"}


@dataclass(eq=False)
class _Chain:
    """Operators that depend on sizes alone, from the first one on."""

    where: Where
    operators: int = 0
    bytes: int = 0
    shape: tuple[int, ...] = ()
    filled_only: bool = True
    """Whether it is but ones, zeros and the like: cheap, and not worth keeping."""
    dropped: bool = False
    """Other values were written to it: it is a buffer for results."""
    into: _Chain | None = None

    def last(self) -> _Chain:
        return self if self.into is None else self.into.last()


class Constants:
    """Observes operators; :meth:`found` tells the matrices that were rebuilt."""

    def __init__(self) -> None:
        self.chains: list[_Chain] = []

    def see(self, operator: Operator) -> None:
        if not operator.outputs:
            return
        chains = [o.notes["chain"].last() if o and "chain" in o.notes else None for o in operator.origins]
        name = operator.name
        if name in _FACTORIES and not (operator.func._schema.is_mutable and None in chains):
            chain = next((c for c in chains if c is not None), None) or self._start(operator)
        elif not chains or None in chains or torch.Tag.nondeterministic_seeded in operator.func.tags:
            chain = None
        else:
            chain = chains[0]
        if chain is None:
            self._written(operator)
            return
        for other in chains:
            if other is not None and other is not chain:
                _absorb(chain, other)
        for tensor, origin in zip(operator.outputs, operator.results, strict=True):
            origin.notes["chain"] = chain
            if not operator.is_view:
                chain.operators += 1
                chain.bytes += nbytes(tensor)
                if tensor.numel() > math.prod(chain.shape) or not chain.shape:
                    chain.shape = tuple(tensor.shape)
        chain.filled_only &= operator.is_view or name in _FILLS

    def _start(self, operator: Operator) -> _Chain | None:
        call = operator.run.call
        inside_another = call is not None and call.tensors and not _is_factory(call.name)
        if operator.where is None or inside_another:
            return None
        self.chains.append(_Chain(operator.where))
        return self.chains[-1]

    def _written(self, operator: Operator) -> None:
        """Drop the chains of what was written in place with other values."""
        if not operator.func._schema.is_mutable:
            return
        for origin in operator.results:
            chain = origin.notes.pop("chain", None)
            if chain is not None:
                chain.last().dropped = True

    def found(self) -> tuple[RebuiltConstant, ...]:
        return tuple(
            RebuiltConstant(
                place=blame.place(*chain.where),
                operators=chain.operators,
                bytes=chain.bytes,
                shape=chain.shape,
                statement=source.text(*chain.where),
            )
            for chain in self.chains
            if chain.into is None and not chain.dropped and not chain.filled_only and _is_matrix(chain.shape)
        )


def _absorb(chain: _Chain, other: _Chain) -> None:
    other.into = chain
    chain.operators += other.operators
    chain.bytes += other.bytes
    chain.filled_only &= other.filled_only
    chain.dropped |= other.dropped
    chain.shape = max(chain.shape, other.shape, key=math.prod)


def _is_factory(name: str) -> bool:
    return name in _FACTORIES or name.endswith("_like") or name.startswith("new_")


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return sum(size > 1 for size in shape) >= 2 and math.prod(shape) >= _LEAST_ELEMENTS
