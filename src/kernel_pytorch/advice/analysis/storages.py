"""What is known of each tensor's storage during a run, so that views share it. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

T = TypeVar("T")


def key_of(tensor: torch.Tensor) -> int | None:
    """A number that views of one storage share; None: the tensor has none."""
    if tensor.layout != torch.strided:
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


@dataclass
class Storages(Generic[T]):
    """Notes by storage. A storage's number is not given to another one while it has a note."""

    _notes: dict[int, tuple[StorageWeakRef, T]] = field(default_factory=dict)

    def get(self, tensor: torch.Tensor) -> T | None:
        key = key_of(tensor)
        note = None if key is None else self._notes.get(key)
        return None if note is None else note[1]

    def set(self, tensor: torch.Tensor, note: T) -> None:
        key = key_of(tensor)
        if key is not None:
            self._notes[key] = (StorageWeakRef(tensor.untyped_storage()), note)  # type: ignore[no-untyped-call]


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors of any nesting of tuples, lists and dicts."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements, wherever they are stored."""
    return tensor.numel() * tensor.element_size()
