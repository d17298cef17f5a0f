"""The objects that a model holds. Imports torch."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

MOST_OBJECTS = 200_000
"""A model that holds more holds a data set or the like."""
_CLOSED = (
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    logging.Logger,
    threading.Thread,
    torch.device,
    torch.dtype,
    torch.Generator,
)
_PLAIN = (str, bytes, int, float, complex, type(None), range, slice)


def reachable(*roots: Any) -> Iterator[Any]:
    """Each object once: attributes and containers, tensors, gradients; neither classes nor closures.

    Numbers and strings are left out. Stops after 200,000 objects.
    """
    seen: set[int] = set()
    waiting = list(reversed(roots))
    while waiting and len(seen) < MOST_OBJECTS:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        waiting += reversed(_parts(value))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [] if value.grad_fn is not None or value.grad is None else [value.grad]
    if isinstance(value, _CLOSED):
        return []
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts += value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        parts += value
    return parts + list(getattr(value, "__dict__", {}).values())
