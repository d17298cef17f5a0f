"""A parsed file with all that the visitors need. Imports libcst."""

from __future__ import annotations

import ast

import libcst as cst
from libcst import metadata

from .edits import Changes
from .names import Names
from .source import NotReadableError


class ParsedFile:
    """A file, its bindings, its positions and the changes so far.

    Args:
        text: Python source without a byte order mark.

    Attributes:
        kept: moved modules with a use that is only noted; what imports them without ``as`` must stay.

    Raises:
        NotReadableError: it does not parse.
    """

    def __init__(self, text: str) -> None:
        self.module = _parse(text)
        if self.module.code != text:
            raise NotReadableError("libcst would not keep every byte of it")
        self.source = text.encode()
        self.changes = Changes(source=self.source)
        self.kept: set[str] = set()
        wrapper = metadata.MetadataWrapper(self.module, unsafe_skip_copy=True)
        self.names = Names(wrapper)
        self._spans = wrapper.resolve(metadata.ByteSpanPositionProvider)
        self._contexts = wrapper.resolve(metadata.ExpressionContextProvider)

    def start(self, node: cst.CSTNode) -> int:
        """Offset of a node's first byte."""
        return self._spans[node].start

    def end(self, node: cst.CSTNode) -> int:
        """Offset after a node's last byte."""
        return self._spans[node].start + self._spans[node].length

    def end_of_name(self, alias: cst.ImportAlias) -> int:
        """Offset after an imported name and its ``as``, before its comma."""
        return self.end(alias.name if alias.asname is None else alias.asname.name)

    def code(self, node: cst.CSTNode) -> str:
        """A node's text."""
        return self.source[self.start(node) : self.end(node)].decode()

    def is_read(self, node: cst.CSTNode) -> bool:
        """Whether a name or attribute is read, not assigned or deleted."""
        return self._contexts.get(node) in (None, metadata.ExpressionContext.LOAD)

    def replace(self, node: cst.CSTNode, new: str) -> None:
        """Replace a node's text."""
        self.changes.replace(self.start(node), self.end(node), new)

    def note(self, node: cst.CSTNode, text: str) -> None:
        """Add a note about a node."""
        self.changes.note(self.start(node), text)

    def note_patch(self, node: cst.CSTNode, now: str, old: str) -> None:
        """Add a note that a node sets what ``now`` names; it set what ``old`` names."""
        self.note(node, f"patches {now} now: code that still reads {old} is not affected")


def _parse(text: str) -> cst.Module:
    """Python's own parser goes first: deep nesting, which it refuses, ends libcst's with the process."""
    try:
        ast.parse(text)
        return cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        raise NotReadableError(f"line {error.raw_line}: {error.message}") from error
    except SyntaxError as error:
        raise NotReadableError(f"line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # a null byte
        raise NotReadableError(str(error)) from error
    except MemoryError as error:
        raise NotReadableError("nested too deeply") from error
