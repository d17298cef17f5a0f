"""Adding import statements and taking names out of them. Imports libcst."""

from __future__ import annotations

import re
from collections.abc import Sequence

import libcst as cst

from .file import ParsedFile
from .names import aliases


def insert_before(file: ParsedFile, statement: cst.CSTNode, new: Sequence[str]) -> None:
    """Insert statements before one, on lines of their own where it begins a line."""
    at = file.start(statement)
    between = _separator(file, at)
    file.changes.replace(at, at, "".join(f"{one}{between}" for one in new))


def replace(file: ParsedFile, statement: cst.Import | cst.ImportFrom, new: Sequence[str]) -> bool:
    """Replace a statement by others; its comments go before them. False if there is no room for those."""
    between = _separator(file, file.start(statement))
    comments = re.findall(r"#[^\r\n]*", file.code(statement))
    if comments and between == "; ":
        return False
    file.replace(statement, between.join([*comments, *new]))
    return True


def _separator(file: ParsedFile, at: int) -> str:
    """What stands between a new statement and the one at a byte: a line end and its indentation, or ``;``."""
    start = _line_start(file.source, at)
    indentation = file.source[start:at].decode()
    continued = file.source[:start].rstrip(b"\r\n").endswith(b"\\")
    if indentation.strip() or continued:
        return "; "
    return file.module.default_newline + indentation


def drop(file: ParsedFile, statement: cst.Import | cst.ImportFrom, gone: Sequence[cst.ImportAlias]) -> bool:
    """Take some, not all, of the names out of a statement; comments stay. False if that is too intricate."""
    names = aliases(statement)
    kept = [alias for alias in names if alias not in gone]
    tail = file.source[file.end_of_name(kept[-1]) : file.end_of_name(names[-1])]
    cut = names[-1] in gone and not isinstance(names[-1].comma, cst.Comma) and b"#" not in tail
    if cut:  # with the comma before it, which only parentheses would allow
        gone = [alias for alias in gone if names.index(alias) < names.index(kept[-1])]
    spans: list[tuple[int, int]] = []
    for alias in gone:
        start, end = file.start(alias), file.end_of_name(alias)
        if isinstance(alias.comma, cst.Comma):
            end = file.source.index(b",", end) + 1
        if b"#" in file.source[start:end]:
            return False
        if spans and not file.source[spans[-1][1] : start].strip(b" \t"):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    if cut:
        file.changes.replace(file.end_of_name(kept[-1]), file.end_of_name(names[-1]), "")
    for start, end in spans:
        file.changes.replace(*_widened(file.source, start, end), "")
    return True


def _widened(source: bytes, start: int, end: int) -> tuple[int, int]:
    """The part to delete with names and their comma, so that no empty line or space is left behind."""
    line = _line_start(source, start)
    alone = not source[line:start].strip(b" \t")
    after = end + len(source[end:]) - len(source[end:].lstrip(b" \t"))
    if source[after : after + 1] == b"\\":
        after += len(source[after:]) - len(source[after:].lstrip(b" \t\\\r\n"))
        return start, after
    ends_line = source[after : after + 1] in (b"\r", b"\n", b"")
    if alone and ends_line:
        return line, after + (2 if source[after : after + 2] == b"\r\n" else 1)
    if ends_line or source[after : after + 1] == b")" or (source[after : after + 1] == b"#" and not alone):
        return len(source[:start].rstrip(b" \t")), end
    return start, after


def _line_start(source: bytes, at: int) -> int:
    return max(source.rfind(b"\n", 0, at), source.rfind(b"\r", 0, at)) + 1
