"""Migrating one file on disk. Imports libcst when a file may need it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from .edits import Note
from .replace import Content
from .source import NotReadableError, Source
from .table import WORDS


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a file needs, or what was done to it."""

    path: str
    """As it was given or found."""
    diff: str = ""
    """Unified; empty if nothing is to be changed."""
    notes: tuple[Note, ...] = ()
    """What the user must look at, by its line before the change."""
    problem: str | None = None
    """Why the file was left alone."""


def migrate(path: Path, *, write: bool) -> Outcome:
    """Find what a file needs and, if ``write``, do it."""
    try:
        content = Content.read(path)
        if not WORDS.search(content.data):
            return Outcome(path=str(path))
        from .rewrite import changes_of

        source = Source.decode(content.data)
        changes = changes_of(source.text)
        new = changes.result()
        if write and changes.edits:
            content.replace(source.encode(new))
    except NotReadableError as error:
        return Outcome(path=str(path), problem=str(error))
    except OSError as error:
        return Outcome(path=str(path), problem=error.strerror or str(error))
    mark = source.mark.decode()  # without which a patch of the first line would not apply
    diff = unified_diff(_lines(mark + source.text), _lines(mark + new), str(path), str(path))
    return Outcome(path=str(path), diff="".join(_ended(diff)), notes=tuple(changes.notes))


def _lines(text: str) -> list[str]:
    """Lines that end with a newline, as diff and patch understand them."""
    *ended, last = text.split("\n")
    return [*(f"{line}\n" for line in ended), *([last] if last else [])]


def _ended(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
