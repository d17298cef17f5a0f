"""Python source between bytes and text, without losing a byte."""

from __future__ import annotations

import codecs
import io
import tokenize
from dataclasses import dataclass


class NotReadableError(Exception):
    """A file that cannot be migrated, and why."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The text of a file, and what is needed to write it again."""

    text: str
    """Without a byte order mark, with the line ends of the file."""
    encoding: str
    mark: bytes
    """Byte order mark, or nothing."""

    @classmethod
    def decode(cls, content: bytes) -> Source:
        """Decode the bytes of a file by the rules of PEP 263.

        Raises:
            NotReadableError: they are not what their encoding says.
        """
        mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            encoding = "utf-8" if mark else encoding
            text = content[len(mark) :].decode(encoding)
            source = cls(text=text, encoding=encoding, mark=mark)
            faithful = source.encode(text) == content
        except (SyntaxError, UnicodeError, LookupError) as error:
            raise NotReadableError(f"cannot be decoded: {error}") from error
        if not faithful:
            raise NotReadableError(f"decoding from {encoding} and encoding again changes it")
        return source

    def encode(self, text: str) -> bytes:
        """The bytes of a file with other text."""
        return self.mark + text.encode(self.encoding)
