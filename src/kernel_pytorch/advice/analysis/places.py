"""Where a user's code is: FILE:LINE, without torch."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from pathlib import Path
from types import CodeType
from typing import Any

_OURS = str(Path(__file__).parents[2])
_NOT_THE_USERS = (
    _OURS,
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
)


def raised(error: BaseException) -> str:
    """The exception and the user's line from which it came: "ValueError: no mask (model.py:31)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_users(frame.filename)]
    text = " ".join(str(error).split())
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if not frames or (not own and frames[-1].filename.startswith(_OURS)):
        return named
    frame = (own or frames)[-1]
    return f"{named} ({short(frame.filename)}:{frame.lineno})"


def is_users(filename: str) -> bool:
    """Whether a file belongs neither to Python, nor to installed packages, nor to this one."""
    return not filename.startswith(_NOT_THE_USERS)


def short(filename: str) -> str:
    """Relative to the working directory if it is below, else the whole path."""
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere; the directory is gone
        return filename


def place_of_class(kind: type[Any]) -> str:
    """FILE:LINE of a class; "": unknown, as of one typed at a prompt."""
    try:
        return f"{short(inspect.getfile(kind))}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return ""


def place_of_forward(kind: type[Any]) -> str:
    """FILE:LINE of a module class's ``forward``; "": unknown."""
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    if not isinstance(code, CodeType):
        return ""
    return f"{short(code.co_filename)}:{code.co_firstlineno}"
