"""Each operator of a call: FLOPs, bytes, seconds, the submodules that run it. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .formulas import formulas, is_fused_attention
from .moved_bytes import memory_of, moved_bytes, size_bytes
from .parameters import dtype_name
from .scores import Scores

_WITHOUT_PRODUCTS = ("aten", "prims", "profiler", "c10d", "_c10d_functional")
"""Namespaces whose operators need no formula if they have none."""


@dataclass(kw_only=True)
class Operation:
    """One operator of a call."""

    name: str
    """As "aten::bmm"."""
    flops: int
    bytes: int
    dtype: str
    """Of its first floating operand; "": it has none."""
    modules: tuple[str, ...]
    """Paths of the submodules that run it, or whose backward pass does, the outermost first."""
    attention: bool
    causal: bool
    """Whether it is fused attention that leaves out what a causal mask hides."""
    seconds: float
    """Wall clock; without meaning on fake tensors."""


class Survey(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that runs under it.

    A backward operator belongs to the submodules, and to attention, as the forward operator whose autograd
    node runs it.

    Args:
        synchronize: waits for the device after each operator.
        fast_path: whether encoder layers may run as one operator, whose FLOPs are not known.
    """

    supports_higher_order_operators = True

    def __init__(
        self, model: nn.Module, synchronize: Callable[[], None] = lambda: None, *, fast_path: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.uncounted: dict[str, None] = {}
        """Operators whose FLOPs are not known."""
        self.parameter_bytes: dict[int, int] = {}
        """Bytes of each parameter read, by its memory; of a table that is looked up, what is read."""
        self._model = model
        self._synchronize = synchronize
        self._fast_path = fast_path
        self._fast_paths_before: list[bool] = []
        self._formulas = formulas()
        self._scores = Scores(model.parameters())
        self._parameters = {memory_of(p) for p in model.parameters()}
        self._running: list[str] = []
        self._forward: dict[int, int] = {}
        """Number of the forward operator by the sequence number of its autograd node."""

    def __enter__(self) -> Survey:
        self._fast_paths_before.append(torch.backends.mha.get_fastpath_enabled())
        if not self._fast_path:
            torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(self._fast_paths_before.pop())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, or the operators of which it consists, and note it."""
        kwargs = kwargs or {}
        is_plain = isinstance(func, torch._ops.OpOverload)
        formula = self._formulas.get(func._overloadpacket if is_plain else func)
        if is_plain and func.namespace == "prim":  # as the question for a tensor's device
            return func(*args, **kwargs)
        if is_plain and formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        start = time.perf_counter()
        result = func(*args, **kwargs)
        self._synchronize()
        seconds = time.perf_counter() - start
        name = func._schema.name if is_plain else func.name()
        moved = moved_bytes(func, args, kwargs, result) if is_plain else 0
        for tensor in _tensors((args, kwargs)) if moved else ():
            if (memory := memory_of(tensor)) in self._parameters:
                read = min(moved, size_bytes(tensor))
                self.parameter_bytes[memory] = max(read, self.parameter_bytes.get(memory, 0))
        flops = 0
        if formula is not None:
            try:
                flops = int(formula(*args, **kwargs, out_val=result))
            except Exception:  # whatever a registered formula raises, the call goes on
                self.uncounted[name] = None
        elif not is_plain or name.split("::")[0] not in _WITHOUT_PRODUCTS:
            self.uncounted[name] = None
        causal = is_plain and is_fused_attention(name) and _is_causal(func, args, kwargs)
        self._note(name, args, kwargs, result, flops, moved, seconds, causal)
        return result

    def _note(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        result: Any,
        flops: int,
        moved: int,
        seconds: float,
        causal: bool,
    ) -> None:
        number = len(self.operations)
        forward = self._forward_of(number)
        operands, results = _tensors((args, kwargs)), _tensors(result)
        fused = is_fused_attention(name)
        modules, attention = tuple(dict.fromkeys(self._running)), fused
        if forward is not None:
            modules = (*_ancestors(modules[0]), *modules) if modules else self.operations[forward].modules
            attention = attention or (flops > 0 and self.operations[forward].attention)
        self.operations.append(
            Operation(
                name=name,
                flops=flops,
                bytes=moved,
                dtype=next((dtype_name(t.dtype) for t in operands if t.is_floating_point()), ""),
                modules=modules,
                attention=attention,
                causal=causal,
                seconds=seconds,
            )
        )
        if _is_forward():
            is_product = flops > 0 and not fused
            for found in self._scores.attention_products(
                number, name, operands, results, is_product=is_product
            ):
                self.operations[found].attention = True

    def _forward_of(self, number: int) -> int | None:
        """Number of the forward operator of which this one is the backward; None if it is none."""
        node = torch._C._current_autograd_node()
        if _is_forward():
            self._forward.setdefault(torch._C._autograd._get_sequence_nr() - 1, number)
        return None if node is None else self._forward.get(node._sequence_nr())

    @contextmanager
    def modules_known(self) -> Iterator[None]:
        """Know the running submodules meanwhile, by hooks that are removed at the end."""
        handles = []
        try:
            for path, module in self._model.named_modules():
                enter = module.register_forward_pre_hook(self._enter(path), prepend=True)
                leave = module.register_forward_hook(self._leave(path), always_call=True)
                handles += [enter, leave]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[..., None]:
        return lambda *_: self._running.append(path)

    def _leave(self, path: str) -> Callable[..., None]:
        return lambda *_: self._running.remove(path)


def _ancestors(path: str) -> list[str]:
    """Of a submodule that checkpointing runs again: "", "layers", "layers.0" of "layers.0.mlp"."""
    parts = path.split(".")
    return ["", *(".".join(parts[:end]) for end in range(1, len(parts)))] if path else []


def _is_forward() -> bool:
    """In a backward pass gradients are on only where checkpointing repeats a forward pass."""
    return torch._C._current_autograd_node() is None or torch.is_grad_enabled()


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_causal(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    if "is_causal" not in names:
        return False
    number = names.index("is_causal")
    return bool(args[number] if number < len(args) else kwargs.get("is_causal", False))
