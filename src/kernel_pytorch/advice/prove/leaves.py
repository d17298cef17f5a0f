"""The leaves of any nesting of outputs, with their paths. Imports torch."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence, Set
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

OPAQUE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Module, enum.Enum)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each leaf, as ("[0].logits", tensor), in order.

    Goes into mappings, sequences, dataclasses and other objects with attributes, each once on a path.
    Empty containers are leaves, so that they count as structure.
    """
    yield from _leaves(tree, path, ())


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """All tensors, in order."""
    return [leaf for _, leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def _leaves(tree: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if id(tree) in above:
        return
    parts = _parts(tree)
    if not parts:
        yield path, tree
    for name, part in parts:
        yield from _leaves(part, path + name, (*above, id(tree)))


def _parts(tree: Any) -> list[tuple[str, Any]]:
    if tree is None or isinstance(tree, (torch.Tensor, str, bytes, bytearray, range, *OPAQUE)):
        return []
    if isinstance(tree, Mapping):
        return [(f"[{key!r}]", value) for key, value in tree.items()]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return [(f".{name}", value) for name, value in zip(tree._fields, tree, strict=True)]
    if isinstance(tree, Set):
        return [("{}", sorted(tree, key=repr))] if tree else []
    if isinstance(tree, Sequence):
        return [(f"[{number}]", value) for number, value in enumerate(tree)]
    if dataclasses.is_dataclass(tree):
        return [(f".{one.name}", getattr(tree, one.name)) for one in dataclasses.fields(tree)]
    slots = [slot for kind in type(tree).__mro__ for slot in _slots(kind) if hasattr(tree, slot)]
    return [
        (f".{name}", getattr(tree, name)) for name in dict.fromkeys((*slots, *getattr(tree, "__dict__", ())))
    ]


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    # A name of two underscores is stored under that of its class.
    return tuple(
        f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    )
