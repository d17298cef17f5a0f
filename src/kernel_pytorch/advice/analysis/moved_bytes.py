"""Bytes that one operator reads and writes at least. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

_READ_NOTHING = ("empty", "new_", "zeros", "ones", "full", "rand", "fill", "zero_", "copy_")
"""Beginnings of the names of operators of whose first operand only the shape, or nothing, matters."""
_WRITE_NOTHING = ("empty", "new_empty")
_READ_PARTS = ("embedding", "index", "gather", "take", "_embedding_bag", "_local_scalar_dense")
"""They read no more of their first operand than they return."""
_CHANGE_PARTS = ("index_put_", "_index_put_impl_", "index_add_", "index_copy_", "index_fill_", "scatter_")
"""They change their first operand in place, no more of it than their others hold."""


def size_bytes(tensor: torch.Tensor) -> int:
    """Bytes of its distinct elements: a dimension that was expanded counts once."""
    if tensor.layout is not torch.strided:
        return 0  # its parts are tensors of their own
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= int(size) if stride or size == 0 else 1
    return count * tensor.element_size()


def memory_of(tensor: torch.Tensor) -> int:
    """Equal for a tensor and its views."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)


def moved_bytes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Bytes of the operands and of the results of an operator: a lower bound, and 0 for a view.

    An operator may read an operand more than once and use memory of its own.

    Args:
        func: an overload, as a dispatch mode gets it.
    """
    operands = list(_operands(func, args, kwargs))
    changed = {id(t): t for t, _, written in operands if written}
    results = [t for t in _tensors(result) if id(t) not in changed]
    if func.is_view or (results and not changed and _all_views([t for t, _, _ in operands], results)):
        return 0
    name = func._schema.name.split("::")[-1]
    read = [size_bytes(t) for t, is_read, _ in operands if is_read]
    written = sum(map(size_bytes, (*changed.values(), *results)))
    if name.startswith(_CHANGE_PARTS):
        return 2 * sum(read[1:])
    if name.startswith(_WRITE_NOTHING):
        return 0
    if name.startswith(_READ_NOTHING):
        read = read[1:]
    elif name.startswith(_READ_PARTS) and not name.endswith("backward") and read:
        read[0] = min(read[0], written)
    return sum(read) + written


def _operands(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[torch.Tensor, bool, bool]]:
    """Each tensor given, whether it is read and whether it is written."""
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(value):
            yield tensor, not argument.is_out, written


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _all_views(operands: list[torch.Tensor], results: list[torch.Tensor]) -> bool:
    """As of operators that return a view although their schema does not say so."""
    if any(t.layout is not torch.strided for t in (*operands, *results)):
        return False
    memory = {memory_of(t) for t in operands}
    return all(memory_of(t) in memory for t in results)
