"""What a model and an optimizer hold: noted, and restored in place. Imports torch."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .reach import reachable

Undo = Callable[[], bool]
"""Restores one object; whether it had changed."""


class Memento:
    """The contents of every object that some others hold.

    Containers and attributes are noted by what they contain, tensors by their values, which takes their
    memory once more. What runs in C without a state that can be read, as an iterator, is not watched.
    """

    def __init__(self, *roots: Any) -> None:
        self._names = _names(*roots)
        self._undo: list[tuple[str, Undo]] = []
        self._kept: list[Any] = []  # ids are unique while objects live
        for value in reachable(*roots):
            self._kept.append(value)
            name = self._names.get(id(value), type(value).__name__)
            for undo in (_container(value), _attributes(value), _tensor(value), _generator(value)):
                if undo is not None:
                    self._undo.append((name, undo))

    def restore(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Restore all; names of what had changed, and of what could not be restored with the reason."""
        changed, lost = [], []
        for name, undo in self._undo:
            try:
                if undo():
                    changed.append(name)
            except Exception as error:
                lost.append(f"{name} ({type(error).__name__}: {error})")
        return tuple(dict.fromkeys(changed)), tuple(dict.fromkeys(lost))


def _names(*roots: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for root in roots:
        if isinstance(root, nn.Module):
            for path, module in root.named_modules():
                names.setdefault(id(module), f"submodule {path}" if path else "the model")
                for part in ("_parameters", "_buffers", "_modules"):
                    names[id(vars(module)[part])] = f"{part[1:]} of {path or 'the model'}"
            for path, tensor in (*root.named_parameters(), *root.named_buffers()):
                names[id(tensor)] = path
        else:
            names[id(root)] = type(root).__name__
    return names


def _container(value: Any) -> Undo | None:
    if isinstance(value, dict):
        old = dict(value)

        def undo_dict() -> bool:
            if len(value) == len(old) and all(
                a is c and _same(b, d) for (a, b), (c, d) in zip(value.items(), old.items(), strict=True)
            ):
                return False
            kind = OrderedDict if isinstance(value, OrderedDict) else dict  # subclasses may forbid changes
            kind.clear(value)
            for key, one in old.items():
                kind.__setitem__(value, key, one)
            return True

        return undo_dict
    if isinstance(value, (list, deque)):
        items = list(value)

        def undo_list() -> bool:
            if len(value) == len(items) and all(map(_same, value, items)):
                return False
            value.clear()
            value.extend(items)
            return True

        return undo_list
    if isinstance(value, set):
        members = set(value)

        def undo_set() -> bool:
            if value == members:
                return False
            value.clear()
            value.update(members)
            return True

        return undo_set
    return None


def _same(first: Any, second: Any) -> bool:
    return first is second or (type(first) is type(second) and type(first) in _PLAIN and first == second)


_PLAIN = (str, bytes, int, float, bool)


def _attributes(value: Any) -> Undo | None:
    own = getattr(value, "__dict__", None)
    if type(own) is not dict or isinstance(value, type):
        return None
    return _container(own)


def _tensor(value: Any) -> Undo | None:
    if not isinstance(value, torch.Tensor):
        return None
    kind, leaf = type(value), value.is_leaf
    if is_lazy(value):

        def undo_lazy() -> bool:
            if type(value) is not kind:
                raise RuntimeError("it was lazy, and has a shape now")
            return False

        return undo_lazy
    same_memory, values = value.detach(), value.detach().clone()
    needs, gradient = value.requires_grad, value.grad if leaf else None
    hooks = {name: dict(getattr(value, name, None) or {}) for name in _TENSOR_HOOKS}

    def undo_tensor() -> bool:
        changed = False
        with torch.no_grad():
            if not _on_same_memory(value, same_memory):
                value.data = same_memory
                changed = True
            if not _equal(value, values):
                value.copy_(values)
                changed = True
        if leaf and value.requires_grad != needs:
            value.requires_grad_(needs)
            changed = True
        if leaf and value.grad is not gradient:
            value.grad = gradient
            changed = True
        for name, old in hooks.items():
            now = getattr(value, name, None)
            if dict(now or {}) != old:
                setattr(value, name, OrderedDict(old))
                changed = True
        return changed

    return undo_tensor


_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _on_same_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.layout is not torch.strided or first.dtype != second.dtype or first.shape != second.shape:
        return first.layout == second.layout and first.dtype == second.dtype and first.shape == second.shape
    return first.data_ptr() == second.data_ptr() and first.stride() == second.stride()


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.is_meta:
        return True
    if first.layout is not torch.strided:
        first, second = first.to_dense(), second.to_dense()
    if torch.equal(first, second):
        return True
    if first.is_floating_point() or first.is_complex():  # NaN
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    return False


def _generator(value: Any) -> Undo | None:
    if not isinstance(value, torch.Generator):
        return None
    old = value.get_state()

    def undo() -> bool:
        if torch.equal(value.get_state(), old):
            return False
        value.set_state(old)
        return True

    return undo
