"""Changes of a text, and notes about what is left to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A replacement of a part of a text."""

    start: int
    """Offset of the first byte in UTF-8."""
    end: int
    """Offset after the last byte; equal to ``start`` to insert."""
    new: str


@dataclass(frozen=True, kw_only=True, order=True)
class Note:
    """Something that the user must look at."""

    line: int
    """Counted from 1."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be done to one text."""

    source: bytes
    """The text in UTF-8."""
    edits: list[Edit] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def replace(self, start: int, end: int, new: str) -> None:
        """Replace the bytes from ``start`` to before ``end``, once however often it is asked for."""
        self.edits.append(Edit(start=start, end=end, new=new))

    def note(self, offset: int, text: str) -> None:
        """Add a note about what stands at a byte."""
        before = self.source[:offset].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        note = Note(line=before.count(b"\n") + 1, text=text)
        if note not in self.notes:
            self.notes.append(note)

    def result(self) -> str:
        """The changed text."""
        return applied(self.source, self.edits).decode()


def applied(source: bytes, edits: Iterable[Edit]) -> bytes:
    """``source`` with all edits, equal ones once. None may overlap; insertions at one place keep order."""
    parts, at = [], 0
    for edit in sorted(dict.fromkeys(edits), key=lambda edit: (edit.start, edit.end)):
        assert at <= edit.start <= edit.end, edit
        parts += [source[at : edit.start], edit.new.encode()]
        at = edit.end
    return b"".join([*parts, source[at:]])
