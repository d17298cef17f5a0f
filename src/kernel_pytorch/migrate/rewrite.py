"""From the text of a file to the edits and notes. Imports libcst."""

from __future__ import annotations

import warnings

from .attributes import AttributeRewriter
from .edits import Changes
from .file import ParsedFile
from .imports import ImportRewriter
from .source import NotReadableError
from .strings import StringRewriter


def changes_of(text: str) -> Changes:
    """What is to be changed and noted in Python source without a byte order mark.

    Raises:
        NotReadableError: it does not parse.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, about the escapes in strings
            file = ParsedFile(text)
            for visitor in (AttributeRewriter(file), StringRewriter(file), ImportRewriter(file)):
                file.module.visit(visitor)
    except RecursionError as error:
        raise NotReadableError("nested too deeply") from error
    file.changes.notes.sort()
    return file.changes
