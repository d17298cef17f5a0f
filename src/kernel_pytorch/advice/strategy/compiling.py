"""Marks a model for torch.compile, once for all strategies that want it. Imports torch.

Each strategy adds to the settings of those before it, and the model is marked anew: a later mark replaces an
earlier one. The passes noted by ``graph_passes`` run before inductor.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .inductor import inductor_with, with_freezing
from .listing import assigned, text_of
from .wrapping import call_within

_NOTE = "_advised_compilation"


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
    """See :func:`inductor_with`."""
    frozen: bool = False
    """Whether weights become constants in inference."""


def compile_with(model: nn.Module, **changes: Any) -> list[str]:
    """Mark a model, with the settings so far and ``changes``; lines of Python that do the same.

    Nothing is compiled before the first call.
    """
    from .graph_passes import backend_of, passes_of

    before: Compilation = getattr(model, _NOTE, Compilation())
    options = {**before.options, **changes.pop("options", {})}
    now = replace(before, options=options, **changes)
    object.__setattr__(model, _NOTE, now)
    inner = "inductor" if _is_plain(now) else inductor_with(now.options, now.memory_budget)
    backend = backend_of(model, inner) if passes_of(model) else inner
    unmark(model)
    for module in [model.get_submodule(path) for path in now.blocks] or [model]:
        module.compile(backend=backend, dynamic=now.dynamic)
    if now.frozen and not before.frozen:
        call_within(model, with_freezing)
    return _lines(now, bool(passes_of(model)), begins_freezing=now.frozen and not before.frozen)


def unmark(model: nn.Module) -> None:
    """Run a model eagerly again."""
    for module in model.modules():
        module._compiled_call_impl = None


def _is_plain(compilation: Compilation) -> bool:
    return not compilation.options and compilation.memory_budget == 1.0


def _lines(now: Compilation, has_passes: bool, *, begins_freezing: bool) -> list[str]:
    imports = ["from collections.abc import Callable", "from typing import Any"]
    lines = [] if _is_plain(now) and not begins_freezing else imports
    inner = "'inductor'"
    if not _is_plain(now):
        lines += [*text_of(inductor_with), *assigned("options", now.options)]
        budget = f", memory_budget={now.memory_budget}" if now.memory_budget != 1.0 else ""
        inner = f"inductor_with(options{budget})"
    if begins_freezing:
        lines += ["from torch import nn", *text_of(with_freezing), *text_of(call_within)]
        lines += ["call_within(model, with_freezing)  # later changes of the weights are not seen"]
    backend = f"attention_backend({inner})" if has_passes else inner
    dynamic = "" if now.dynamic is None else f", dynamic={now.dynamic}"
    lines += [f"backend = {backend}", "from torch import nn", *text_of(unmark), "unmark(model)"]
    if not now.blocks:
        return [*lines, f"model.compile(backend=backend{dynamic})"]
    lines += assigned("paths", now.blocks)
    return [
        *lines,
        "for path in paths:",
        f"    model.get_submodule(path).compile(backend=backend{dynamic})",
    ]
