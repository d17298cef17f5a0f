"""The line of the user's program that a thread stands on."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import traceback
from types import CodeType, FrameType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_STANDARD = sysconfig.get_paths()["stdlib"]
_DECORATORS = f"{os.sep}typing_extensions.py"
"""Wraps torch's deprecated functions."""


class Sites:
    """Finds lines outside of torch, of this package and of the standard library, and remembers them."""

    def __init__(self) -> None:
        self._inner: dict[CodeType, bool] = {}
        self._names: dict[tuple[CodeType, int], str] = {}
        torch = sys.modules.get("torch")
        folders = [_PACKAGE] if torch is None else [_PACKAGE, os.path.dirname(torch.__file__ or _PACKAGE)]
        self._folders = tuple(folder + os.sep for folder in folders)

    def here(self) -> str:
        """file:line of the nearest frame of this thread; "" if there is none."""
        return self.of(sys._getframe(1))

    def of_main_thread(self) -> str:
        """file:line of the nearest frame of the main thread."""
        return self.of(_main_frame())

    def of(self, frame: FrameType | None) -> str:
        inner = self._inner
        while frame is not None:
            code = frame.f_code
            known = inner.get(code)
            if known is None:
                known = inner[code] = self._is_inner(code.co_filename)
            if not known:
                return self._name(code, frame.f_lineno)
            frame = frame.f_back
        return ""

    def _name(self, code: CodeType, line: int) -> str:
        name = self._names.get((code, line))
        if name is None:
            file, here = code.co_filename, os.getcwd() + os.sep
            name = self._names[code, line] = f"{file.removeprefix(here)}:{line}"
        return name

    def _is_inner(self, file: str) -> bool:
        standard = file.startswith(_STANDARD + os.sep) and f"{os.sep}site-packages{os.sep}" not in file
        return standard or file.startswith(("<frozen", *self._folders)) or file.endswith(_DECORATORS)


def main_thread_stack() -> list[str]:
    """Where the main thread stands, the outermost frame first: file:line and the function."""
    frame = _main_frame()
    return [
        f"{found.filename}:{found.lineno} {found.name}"
        for found in (traceback.extract_stack(frame) if frame else ())
    ]


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)
