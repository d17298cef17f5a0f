"""What Dynamo logs while it compiles: the records that tlparse reads. Imports torch; Dynamo only when used.

``torch._dynamo.explain`` merges equal graph breaks and misses those of frames without operators; the logger
``torch.__trace`` gets each one with its line. The format is torch's own: only this file knows it.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import blame

_TRACE = "torch.__trace"


@dataclass(kw_only=True)
class DynamoLog:
    """Records of one kind in order; ``call`` is what the caller set when each arrived."""

    call: int = 0
    breaks: list[tuple[int, str]] = field(default_factory=list)
    """Call, and the reason with a traceback."""
    recompiles: list[tuple[int, int, str]] = field(default_factory=list)
    """Call, id of the frame, failed guards: those of the latest compilation first."""
    code: dict[int, tuple[str, int]] = field(default_factory=dict)
    """File and first line of each frame's code."""
    specialised: dict[int, tuple[str, int]] = field(default_factory=dict)
    """The user's line that needs one value of a size or number, by id of the frame."""


class _Handler(logging.Handler):
    def __init__(self, log: DynamoLog) -> None:
        super().__init__(logging.DEBUG)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        metadata: dict[str, Any] = getattr(record, "metadata", {})
        payload = getattr(record, "payload", None) or ""
        name = metadata.get("artifact", {}).get("name")
        frame = metadata.get("frame_id", -1)
        if name == "dynamo_graph_break_reason":
            self.log.breaks.append((self.log.call, str(payload)))
        elif name == "recompile_reasons":
            self.log.recompiles.append((self.log.call, frame, _first_reason(str(payload))))
        elif "compilation_metrics" in metadata:
            metrics = metadata["compilation_metrics"]
            if metrics.get("co_filename"):
                self.log.code[frame] = (metrics["co_filename"], metrics["co_firstlineno"])
        for kind in ("symbolic_shape_specialization", "guard_added", "guard_added_fast"):
            fixed = metadata.get(kind)
            if fixed is not None and (kind == "symbolic_shape_specialization" or _fixes_value(fixed)):
                where = _users(fixed.get("user_stack") or [])
                if where is not None:
                    self.log.specialised[frame] = where


def _fixes_value(guard: dict[str, Any]) -> bool:
    """Whether a guard is "Eq(expression, number)"."""
    return re.fullmatch(r"Eq\(.*, -?[\d.e+-]+\)", str(guard.get("expr"))) is not None


@contextmanager
def recorded() -> Iterator[DynamoLog]:
    """Record while Dynamo compiles, with empty caches, for its eager backend alone; nothing is printed.

    On leaving, Dynamo's caches are empty again, and loggers and their handlers are as they were.
    """
    import torch._dynamo  # importing it sets up the loggers
    from torch._logging.structured import INTERN_TABLE

    log = DynamoLog()
    trace = logging.getLogger(_TRACE)
    handlers, level = trace.handlers[:], trace.level
    interned = dict(INTERN_TABLE)
    muted = _printing()
    torch._dynamo.reset()
    trace.handlers = [_Handler(log)]
    trace.setLevel(logging.DEBUG)
    for handler in muted:
        handler.addFilter(_nothing)
    try:
        with warnings.catch_warnings(), torch.compiler.set_stance(force_backend="eager"):
            warnings.simplefilter("ignore")
            yield log
    finally:
        for handler in muted:
            handler.removeFilter(_nothing)
        trace.handlers = handlers
        trace.setLevel(level)
        INTERN_TABLE.clear()
        INTERN_TABLE.update(interned)  # names that our handler alone was told
        torch._dynamo.reset()


def _printing() -> list[logging.Handler]:
    """Handlers of torch's loggers other than the trace."""
    found = []
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "torch" and name != _TRACE:
            found += [handler for handler in logger.handlers if handler not in found]
    return found


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _first_reason(payload: str) -> str:
    """Of one failed guard, or of a JSON list of those of all compilations of the frame."""
    if payload.lstrip().startswith("["):
        try:
            return str(json.loads(payload)[0])
        except (ValueError, IndexError):
            return payload
    return payload


def guard_of(reason: str) -> str:
    """The condition that failed, without its source: "self.n == 3"."""
    text = re.sub(r"^\d+/\d+: ", "", reason.splitlines()[0] if reason else "")
    return re.split(r"\s{2,}#|\s+\(HINT", text)[0].strip()


def _users(stack: list[dict[str, Any]]) -> tuple[str, int] | None:
    from torch._logging.structured import INTERN_TABLE

    names = {number: name for name, number in INTERN_TABLE.items()}
    text = "\n".join(
        f'File "{names.get(frame["filename"], "<unknown>")}", line {frame["line"]}' for frame in stack
    )
    return blame.in_traceback(text)
