"""Which line of the user's code an operator, a graph break or a guard comes from. Imports torch.

The user's code is all that is neither Python's, torch's nor this package's; where a library builds the model,
its lines are the model's.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType

import torch

from .places import short

_SKIPPED = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
_PYTHON = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_TYPED = ("<stdin>", "<ipython-input-")
_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)


@lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Whether a file is the user's: code that a program generated is not."""
    if file.startswith("<"):
        return file.startswith(_TYPED)
    if any(_below(file, folder) for folder in _SKIPPED):
        return False
    return "-packages/" in file or not any(_below(file, folder) for folder in _PYTHON)


def _below(file: str, folder: str) -> bool:
    return file.startswith(f"{folder}/")


def place(file: str, line: int) -> str:
    """FILE:LINE."""
    return f"{short(file)}:{line}"


def place_of_code(code: CodeType) -> str:
    """FILE:LINE of a function's definition."""
    return place(code.co_filename, code.co_firstlineno)


def users_frames(until: CodeType | None = None) -> Iterator[FrameType]:
    """The user's frames, innermost first, up to the frame that runs ``until``, which is not the user's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not until:
        if is_users(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def in_traceback(text: str) -> tuple[str, int] | None:
    """File and line of the innermost of the user's frames in a traceback as Python prints it."""
    found = None
    for frame in _FRAME.finditer(text):
        if is_users(frame["file"]):
            found = frame["file"], int(frame["line"])
    return found
