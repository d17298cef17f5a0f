"""Marks a model for torch.compile, once for all strategies that want it. Imports torch.

Each strategy adds to the settings of those before it, and the model is marked anew: a later mark replaces an
earlier one. The passes noted by ``graph_passes`` run before inductor.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .graph_passes import backend_of, passes_of
from .inductor import inductor_with_budget, with_freezing
from .listing import assigned, text_of
from .wrapping import call_within

NOTE = "_kernel_pytorch_compilation"


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """How a model is compiled."""

    blocks: tuple[str, ...] = ()
    """Paths of the submodules that are compiled; none: the whole model."""
    dynamic: bool | None = None
    """As of torch.compile."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of inductor."""
    memory_budget: float = 1.0
    """See :func:`inductor_with_budget`."""
    frozen: bool = False
    """Whether weights become constants in inference."""


def compile_with(model: nn.Module, **changes: Any) -> list[str]:
    """Mark a model, with the settings so far and ``changes``; lines of Python that do the same.

    Nothing is compiled before the first call.

    Args:
        changes: fields of :class:`Compilation`; ``options`` are added to those so far.
    """
    before: Compilation = getattr(model, NOTE, Compilation())
    options = {**before.options, **changes.pop("options", {})}
    now = replace(before, options=options, **changes)
    setattr(model, NOTE, now)
    inner = "inductor" if now.memory_budget == 1.0 else inductor_with_budget(now.memory_budget)
    backend = backend_of(model, inner) if passes_of(model) else inner
    unmark(model)
    for module in [model.get_submodule(path) for path in now.blocks] or [model]:
        module.compile(backend=backend, dynamic=now.dynamic, options=now.options or None)
    begins_freezing = now.frozen and not before.frozen
    if begins_freezing:
        call_within(model, with_freezing)
    return _lines(now, has_passes=bool(passes_of(model)), begins_freezing=begins_freezing)


def is_marked(model: nn.Module) -> bool:
    """Whether :func:`compile_with` was called for it."""
    return hasattr(model, NOTE)


def unmark(model: nn.Module) -> None:
    """Run a model eagerly again."""
    for module in model.modules():
        module._compiled_call_impl = None


def _lines(now: Compilation, *, has_passes: bool, begins_freezing: bool) -> list[str]:
    lines = ["from torch import nn", *text_of(unmark), "unmark(model)"]
    backend = '"inductor"'
    if begins_freezing or now.memory_budget != 1.0:
        lines += ["from collections.abc import Callable", "from typing import Any"]
    if begins_freezing:
        lines += [*text_of(with_freezing), *text_of(call_within)]
        lines += ["call_within(model, with_freezing)  # later changes of weights may not be seen"]
    if now.memory_budget != 1.0:
        lines += text_of(inductor_with_budget)
        backend = f"inductor_with_budget({now.memory_budget})"
    if has_passes:
        backend = f"attention_backend({backend})"
    arguments = ["backend=backend"]
    arguments += [f"dynamic={now.dynamic}"] if now.dynamic is not None else []
    arguments += ["options=options"] if now.options else []
    lines += [f"backend = {backend}", *(assigned("options", now.options) if now.options else ())]
    call = f"compile({', '.join(arguments)})"
    if not now.blocks:
        return [*lines, f"model.{call}"]
    return [
        *lines,
        *assigned("paths", now.blocks),
        "for path in paths:",
        f"    model.get_submodule(path).{call}",
    ]
