"""One call of a model, watched: which submodules ran in what order, and which were given the same tensor.

Imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ..sample import Sample

Tag = tuple[int, int]
"""A tensor's number, and how often it had been written to in place."""

_TELLS_VALUES = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "allclose", "equal"}


@dataclass(frozen=True, kw_only=True)
class ModuleCall:
    """A call of a submodule."""

    began: int
    """Number of the event; calls that are nested in another lie between its two events."""
    ended: int
    given: Tag | None
    """Its only tensor argument; None: there are several or none."""
    gave: Tag | None
    """Its output, if that is one tensor."""


@dataclass(kw_only=True)
class Watched:
    """What was seen."""

    calls: dict[str, list[ModuleCall]] = field(default_factory=dict)
    """By the submodule's path."""
    readers: Counter[int] = field(default_factory=Counter)
    """How many functions read a tensor, by its number."""
    returned: frozenset[int] = frozenset()
    """Numbers of the tensors that the model returned."""
    outputs: Any = None

    def once(self, path: str) -> ModuleCall | None:
        """The call of a submodule that was called once."""
        calls = self.calls.get(path, [])
        return calls[0] if len(calls) == 1 else None


def watch(model: nn.Module, sample: Sample) -> Watched:
    """Call a model without gradients; hooks are removed again, other state may change as by any call.

    Raises:
        Exception: of whatever kind the model raises.
    """
    watcher = _Watcher()
    with watcher.hooks(model), watcher, torch.no_grad():
        outputs = sample.call(model)
    watcher.watched.outputs = outputs
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    watcher.watched.returned = frozenset(watcher.number(tensor) for tensor in tensors)
    return watcher.watched


class _Watcher(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.watched = Watched()
        self._numbers = WeakTensorKeyDictionary()  # by identity; an address may be used again
        self._count = 0
        self._events = 0
        self._running: dict[str, list[tuple[int, Tag | None]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and note the tensors that it reads."""
        result = func(*args, **(kwargs or {}))
        told = any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result))
        if told or getattr(func, "__name__", "") in _TELLS_VALUES:
            read = {self._numbers[t] for t in _tensors((args, kwargs)) if t in self._numbers}
            self.watched.readers.update(read)
        return result

    def number(self, tensor: torch.Tensor) -> int:
        """A number of its own for each tensor."""
        if tensor not in self._numbers:
            self._count += 1
            self._numbers[tensor] = self._count
        return int(self._numbers[tensor])

    def tag(self, tensors: list[torch.Tensor]) -> Tag | None:
        """Of the only tensor."""
        if len(tensors) != 1:
            return None
        with torch._C.DisableTorchFunction():
            version = 0 if tensors[0].is_inference() else tensors[0]._version
        return self.number(tensors[0]), version

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Note each call of a submodule meanwhile."""
        handles = []
        try:
            for path, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave(path)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._events += 1
            self._running.setdefault(path, []).append((self._events, self.tag(_tensors((args, kwargs)))))

        return enter

    def _leave(self, path: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._events += 1
            began, given = self._running[path].pop()
            gave = self.tag([output]) if isinstance(output, torch.Tensor) else None
            call = ModuleCall(began=began, ended=self._events, given=given, gave=gave)
            self.watched.calls.setdefault(path, []).append(call)

        return leave


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
