"""Where torch.compile splits a model's graph or compiles it again, found by Dynamo without a compiler.

Imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from . import blame, source
from .dynamo_log import DynamoLog, guard_of, recorded
from .observations import BreakCause, GraphBreak, Recompile, RecompileCause

if TYPE_CHECKING:
    from torch import nn

_CAUSES: tuple[tuple[str, BreakCause], ...] = (
    ("Data-dependent branching", "branch"),
    ("data-dependent assert", "branch"),
    (".item()", "item"),
    ("tolist()", "item"),
    ("_local_scalar_dense", "item"),
    ("builtin operator `print`", "print"),
    ("builtin `print`", "print"),
    ("logging", "log"),
    ("warnings.warn", "log"),
    ("Dynamic shape operator", "dynamic shape"),
    ("torch.compiler.disable", "disabled"),
)


Phase = Literal["first", "again", "length"]
"""again: with equal shapes. length: of another length than any before."""


def compiled_runs(
    model: nn.Module, calls: Iterable[tuple[Phase, Callable[[nn.Module], object]]]
) -> tuple[tuple[GraphBreak, ...], tuple[Recompile, ...]]:
    """Run a model under Dynamo's eager backend; it is changed: give a copy.

    Code that is compiled anew in two calls of a phase is compiled in each of them: the first new compilation
    is what automatic dynamic shapes cost. A call that raises does not count.

    Raises:
        Exception: what the first call raised.
    """
    phases: list[Phase] = []
    failed = set()
    with recorded() as log:
        model.compile(backend="eager")
        for phase, call in calls:
            log.call = len(phases)
            phases.append(phase)
            try:
                call(model)
            except Exception:
                if phase == "first":
                    raise
                failed.add(log.call)
    log.breaks = [found for found in log.breaks if found[0] not in failed]
    log.recompiles = [found for found in log.recompiles if found[0] not in failed]
    return _breaks([reason for _, reason in log.breaks]), _recompiles(log, phases)


def _breaks(reasons: list[str]) -> tuple[GraphBreak, ...]:
    found: dict[str, GraphBreak] = {}
    for text in reasons:
        _, _, stack = text.partition("User code traceback:")
        stack = stack.partition("Traceback (most recent call last)")[0]
        header = re.search(r"Graph break in user code at (.+):(\d+)", text)
        where = blame.in_traceback(stack) or ((header[1], int(header[2])) if header else None)
        if where is None:
            continue
        place = blame.place(*where)
        if place not in found:
            found[place] = _break(place, source.text(*where), text)
    return tuple(found.values())


def _break(place: str, statement: str, text: str) -> GraphBreak:
    about = text.partition("User code traceback:")[0]
    lines = [line.strip() for line in about.splitlines()]
    at = next((at for at, line in enumerate(lines) if line.startswith("Explanation:")), 1)
    reason = next((line for line in reversed(lines[:at]) if line), "unknown")
    hint = next((line.removeprefix("Hint: ") for line in lines if line.startswith("Hint: ")), "")
    named = "\n".join(line for line in lines if not line.startswith("Hint: "))
    causes: list[BreakCause] = [cause for words, cause in _CAUSES if words in named]
    cause: BreakCause = causes[0] if causes else "other"
    return GraphBreak(place=place, cause=cause, reason=reason, hint=hint, statement=statement)


def _recompiles(log: DynamoLog, phases: list[Phase]) -> tuple[Recompile, ...]:
    found: dict[str, Recompile] = {}
    for phase in ("again", "length"):
        calls: dict[int, dict[int, str]] = {}
        for call, frame, reason in log.recompiles:
            if phases[call] == phase:
                calls.setdefault(frame, {})[call] = reason
        for frame, reasons in calls.items():
            reason = reasons[max(reasons)]
            of_size = "size mismatch" in reason or ".size()" in reason
            where = _line_of(log, frame, reason)
            if len(reasons) < 2 or where is None:
                continue
            place = blame.place(*where)
            cause: RecompileCause = "length" if of_size and phase == "length" else "value"
            statement, guard = source.text(*where), guard_of(reason)
            found.setdefault(place, Recompile(place=place, cause=cause, guard=guard, statement=statement))
    return tuple(found.values())


def _line_of(log: DynamoLog, frame: int, reason: str) -> tuple[str, int] | None:
    """The line that needs the value: of the guard, else where it was fixed, else of the function."""
    return blame.in_traceback(reason) or log.specialised.get(frame) or log.code.get(frame)
