"""Statements and loops of a Python source file, by line. Without torch."""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache

_LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def statement(file: str, line: int) -> ast.stmt | None:
    """The smallest statement that covers a line, or None: no such source.

    Of a compound statement only its head counts as its own, so the line of an ``if`` gives the ``if``.
    """
    tree = _tree(file)
    found = None
    for node in ast.walk(tree) if tree is not None else ():
        if (
            isinstance(node, ast.stmt)
            and _covers(node, line)
            and (found is None or _size(node) <= _size(found))
        ):
            found = node
    return found


@lru_cache(maxsize=4096)
def text(file: str, line: int) -> str:
    """Source of the statement at a line, on one line, bodies left out; "": unknown."""
    node = statement(file, line)
    if node is None:
        return linecache.getline(file, line).strip()
    body = getattr(node, "body", None)
    if isinstance(body, list) and body:
        lines = linecache.getlines(file)[node.lineno - 1 : max(node.lineno, body[0].lineno - 1)]
        return " ".join(part.strip() for part in lines)
    return ast.unparse(node)


@lru_cache(maxsize=4096)
def loop(file: str, line: int) -> tuple[int, int] | None:
    """First and last line of the innermost loop or comprehension around a line, or None: there is none."""
    tree = _tree(file)
    found: tuple[int, int] | None = None
    for node in ast.walk(tree) if tree is not None else ():
        if not isinstance(node, _LOOPS) or not _covers(node, line):
            continue
        if isinstance(node, (ast.For, ast.AsyncFor)) and line < node.body[0].lineno:
            continue  # the iterable is evaluated once
        if found is None or _size(node) <= found[1] - found[0]:
            found = (node.lineno, node.end_lineno or node.lineno)
    return found


def has_source(file: str) -> bool:
    """Whether the file's source can be read and parsed."""
    return _tree(file) is not None


def _covers(node: ast.stmt | ast.expr, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


def _size(node: ast.stmt | ast.expr) -> int:
    return (node.end_lineno or node.lineno) - node.lineno


@lru_cache(maxsize=64)
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse("".join(linecache.getlines(file)) or "?")
    except (SyntaxError, ValueError):
        return None
