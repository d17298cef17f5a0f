"""Compiled code that two models do not share. Imports torch."""

from __future__ import annotations

import types

from torch import nn


def give_own_code(model: nn.Module) -> None:
    """Let submodules that are marked for torch.compile have code objects of their own.

    Dynamo looks compiled code up by code object, guards and backend. Two copies of a model whose compilers
    differ in what these do not show, a setting of inductor, would otherwise run the code of whichever was
    compiled first. Submodules of one class still share what is compiled for the class.
    """
    derived: dict[type[nn.Module], type[nn.Module]] = {}
    for module in model.modules():
        kind = type(module)
        forward = kind.forward
        if getattr(module, "_compiled_call_impl", None) is None or not isinstance(
            forward, types.FunctionType
        ):
            continue
        if kind not in derived:
            names = {"forward": _copied(forward), "__module__": kind.__module__}
            derived[kind] = type(kind.__name__, (kind,), names)
        module.__class__ = derived[kind]


def _copied(function: types.FunctionType) -> types.FunctionType:
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update(function.__dict__)
    return copy
