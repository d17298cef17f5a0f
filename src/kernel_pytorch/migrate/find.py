"""The Python files below given paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SUFFIXES = (".py", ".pyi")


Tell = Callable[[Path, str], None]
"""Is told a path and what is with it."""


def python_files(paths: Sequence[Path], unreadable: Tell, linked: Tell) -> Iterator[Path]:
    """Files to migrate, each once however it is reached, sorted within a folder.

    Hidden folders, virtual environments and ``__pycache__`` are left out. A link is followed if it was given;
    below a folder its target is migrated only if that is reached itself.

    Args:
        paths: files of any name and folders; all exist.
        unreadable: is told which folder cannot be read.
        linked: is told which link leads out of the paths.
    """
    roots = [_real(path) for path in paths]
    seen: set[Path] = set()
    for path in paths:
        found = [path] if path.is_file() else _walk(path, roots, unreadable, linked)
        for file in found:
            real = _real(file)
            if real not in seen:
                seen.add(real)
                yield file


def _walk(folder: Path, roots: Sequence[Path], unreadable: Tell, linked: Tell) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        unreadable(Path(error.filename), str(error.strerror))

    for where, folders, files in os.walk(folder, onerror=failed):
        here = Path(where)
        for name in sorted([*files, *(name for name in folders if (here / name).is_symlink())]):
            path = here / name
            if path.is_symlink():
                if (path.suffix in SUFFIXES or path.is_dir()) and not _is_within(_real(path), roots):
                    linked(path, f"is a link to {os.readlink(path)}, which was not given")
            elif path.suffix in SUFFIXES and stat.S_ISREG(path.lstat().st_mode):
                yield path
        folders[:] = sorted(name for name in folders if not _is_left_out(here / name))


def _real(path: Path) -> Path:
    """A path without links; ``Path.resolve`` raises RuntimeError for a link to itself."""
    return Path(os.path.realpath(path))


def _is_left_out(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name == "__pycache__" or (folder / "pyvenv.cfg").is_file()


def _is_within(path: Path, roots: Sequence[Path]) -> bool:
    return any(path == root or root in path.parents for root in roots)
