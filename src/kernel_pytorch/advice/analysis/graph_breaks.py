"""Where torch.compile would split a model's graph or compile it again: runs under Dynamo, without a compiler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from . import blame, source
from .dynamo_log import DynamoLog, guard_of, recorded
from .observations import BreakCause, GraphBreak, Recompile

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


def compiled_runs(
    model: nn.Module, calls: Iterable[tuple[str, Callable[[nn.Module], object]]]
) -> tuple[tuple[GraphBreak, ...], tuple[Recompile, ...]]:
    """Run a model under Dynamo's eager backend; it is changed: give a copy.

    Args:
        calls: for each its phase and itself. Phases: "first"; "again", with equal shapes; "length", each of
            another length. Code that is compiled anew in two calls of a phase is compiled in each: one new
            compilation is what automatic dynamic shapes cost.

    Raises:
        Exception: what a call raised.
    """
    with recorded() as log:
        model.compile(backend="eager")
        phases = []
        for phase, call in calls:
            log.call = len(phases)
            phases.append(phase)
            call(model)
    return _breaks(log.breaks), _recompiles(log, phases)


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
    cause = next((cause for words, cause in _CAUSES if words in named), "other")
    return GraphBreak(place=place, cause=cause, reason=reason, hint=hint, statement=statement)


def _recompiles(log: DynamoLog, phases: list[str]) -> tuple[Recompile, ...]:
    found: dict[str, Recompile] = {}
    for phase, cause in (("again", "value"), ("length", "length")):
        calls: dict[int, dict[int, str]] = {}
        for call, frame, reason in log.recompiles:
            if phases[call] == phase:
                calls.setdefault(frame, {})[call] = reason
        for frame, reasons in calls.items():
            if len(reasons) < 2:
                continue
            reason = reasons[max(reasons)]
            sizes = "size mismatch" in reason or ".size()" in reason
            where = blame.in_traceback(reason)
            if where is None and sizes:
                where = log.specialised.get(frame)
            where = where or log.code.get(frame)
            if where is None:
                continue
            place = blame.place(*where)
            kind: str = cause if sizes or cause == "value" else "value"
            found.setdefault(
                place,
                Recompile(
                    place=place,
                    cause="length" if kind == "length" else "value",
                    guard=guard_of(reason),
                    statement=source.text(*where),
                ),
            )
    return tuple(found.values())
