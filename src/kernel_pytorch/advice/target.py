"""What a user names: FILE:NAME. Loading it runs the user's code."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import KernelPytorchError

_NAMED = re.compile(r"(?P<file>[^()]*[^()\s:]):(?P<name>[A-Za-z_][\w.]*)")


class TargetError(KernelPytorchError):
    """What the user named does not exist, cannot be loaded, or is not what is needed. One line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class Named:
    """FILE:NAME."""

    file: Path
    name: str
    """Of the file's module; dots lead to attributes."""

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    @classmethod
    def of(cls, text: str, option: str = "") -> Named:
        """Parse FILE:NAME.

        Raises:
            TargetError: it is not of that form, or there is no such file.
        """
        found = _NAMED.fullmatch(text.strip())
        start = f"{option}: " if option else ""
        if found is None:
            raise TargetError(f"{start}FILE:NAME is needed, as model.py:make_model, got {text!r}")
        named = cls(Path(found["file"]), found["name"])
        if named.file.is_dir():
            raise TargetError(f"{start}{named.file} is a folder, not a Python file")
        if not named.file.is_file():
            raise TargetError(f"{start}no such file: {named.file}")
        return named

    def load(self) -> Any:
        """The object. Runs the file, once in a process.

        Raises:
            TargetError: the file raises, with its line, or has no such name.
        """
        value: Any = _module(self.file)
        for part in self.name.split("."):
            try:
                value = getattr(value, part)
            except AttributeError:
                near = difflib.get_close_matches(part, dir(value), n=1)
                raise TargetError(
                    f"{self.file} has no {part!r}" + (f"; did you mean {near[0]}?" if near else "")
                ) from None
        return value

    def call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call what was loaded.

        Raises:
            TargetError: it raises, or ends the process in a regular way.
        """
        try:
            return function(**arguments)
        except BaseException as error:  # sys.exit too
            raise TargetError(f"{self} failed: {where(error, self.file)}") from error


def names_a_file(text: str) -> bool:
    """Whether a text has the form FILE:NAME."""
    return _NAMED.fullmatch(text.strip()) is not None


_loaded: dict[Path, ModuleType] = {}


def _module(file: Path) -> ModuleType:
    path = file.resolve()
    if path in _loaded:
        return _loaded[path]
    taken = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    name = f"advised_{path.stem}" if taken or not path.stem.isidentifier() else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as for a script
    sys.modules[name] = module  # dataclasses and pickles look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # sys.exit too
        del sys.modules[name]
        raise TargetError(f"{file} cannot be imported: {where(error, file)}") from error
    _loaded[path] = module
    return module


def where(error: BaseException, file: Path) -> str:
    """An exception in one line, with the line in the user's file, or one beside it, that led to it."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{Path(error.filename or file).name}:{error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve().parent == file.resolve().parent]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: {text}" if own else text


def load_function(named: Named) -> Callable[..., Any]:
    """What can be called.

    Raises:
        TargetError: it cannot.
    """
    function = named.load()
    if not callable(function):
        raise TargetError(f"{named} is {a_or_an(function)}, which cannot be called")
    return function  # type: ignore[no-any-return]


def a_or_an(value: object) -> str:
    """The class of a value, with its article; None is itself."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
