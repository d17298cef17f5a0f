"""Watches every operator of a run, and what its operands come from. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import blame
from .storages import Storages, key_of, tensors

Where = tuple[str, int]
"""File and line."""


@dataclass
class Origin:
    """Where a storage's values come from."""

    name: str = ""
    """The parameter or buffer that it is; ""."""
    age: int = 0
    """Operators in a row that led to it, the longest way."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What an observer keeps, by its own key."""


@dataclass
class Call:
    """A call of a torch function from Python, as ``torch.tril`` or ``Tensor.contiguous``."""

    name: str
    tensors: bool
    """Whether it was given a tensor."""


@dataclass
class Run:
    """What the observers of one run share."""

    until: CodeType
    """Of the function that runs the model: no frame beyond it is the model's."""
    origins: Storages[Origin] = field(default_factory=Storages)
    call: Call | None = None
    """The outermost call of a torch function that is running."""

    def stored(self, model: nn.Module) -> None:
        """Note the model's parameters and buffers."""
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.origins.set(tensor, Origin(name))

    def where(self) -> Where | None:
        """The user's line that is running; None: there is none, as in a backward pass."""
        for frame in blame.users_frames(self.until):
            return frame.f_code.co_filename, frame.f_lineno
        return None


@dataclass
class Operator:
    """One operator that ran."""

    run: Run
    func: torch._ops.OpOverload
    args: Sequence[Any]
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    where: Where | None
    origins: list[Origin | None]
    """Of the inputs, before it ran."""
    results: list[Origin]
    """Of the outputs; those of views and of what is written in place are the input's own."""

    @property
    def name(self) -> str:
        """As "clone"."""
        return self.func._schema.name.removeprefix("aten::")

    @property
    def is_view(self) -> bool:
        """Whether it returned its input's storage and wrote nothing."""
        return bool(self.outputs) and self.func.is_view


class Observer(Protocol):
    """Looks at each operator."""

    def see(self, operator: Operator) -> None:
        """Called after it ran."""
        ...


class OperatorWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows each operator to observers; tracks origins."""

    def __init__(self, run: Run, observers: Sequence[Observer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run, self.observers = run, observers

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        inputs = list(tensors((args, kwargs)))
        origins = [self.run.origins.get(tensor) for tensor in inputs]
        out = _callable(func)(*args, **kwargs)
        outputs = list(tensors(out))
        operator = Operator(
            run=self.run,
            func=func,
            args=args,
            inputs=inputs,
            outputs=outputs,
            where=self.run.where(),
            origins=origins,
            results=self._results(func, inputs, origins, outputs),
        )
        for observer in self.observers:
            observer.see(operator)
        return out

    def _results(
        self,
        func: torch._ops.OpOverload,
        inputs: list[torch.Tensor],
        origins: list[Origin | None],
        outputs: list[torch.Tensor],
    ) -> list[Origin]:
        age = 1 + max((origin.age for origin in origins if origin is not None), default=0)
        own = {key_of(tensor): origin for tensor, origin in zip(inputs, origins, strict=True)}
        results = []
        for tensor in outputs:
            origin = own.get(key_of(tensor))
            if origin is None:
                origin = Origin(age=age)
                self.run.origins.set(tensor, origin)
            elif func._schema.is_mutable and not origin.name:
                origin.age = age
            results.append(origin)
        return results


def _callable(func: torch._ops.OpOverload) -> Callable[..., Any]:
    return func
