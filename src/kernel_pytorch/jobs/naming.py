"""A name for a job that was given none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

_INTERPRETERS = re.compile(r"python[\d.]*|(?:ba|da|z|k)?sh|perl|env|nice|uv|run")


def name_of(command: Sequence[str]) -> str:
    """What the command works on (``longnet train --data books``: books), else the script or program.

    Args:
        command: program and arguments.
    """
    for word, following in zip(command, [*command[1:], ""], strict=True):
        option, has_value, value = word.partition("=")
        if option == "--data" and (stem := _stem(value if has_value else following)):
            return stem
    for number, word in enumerate(command):
        if word == "-m" and number + 1 < len(command):
            return command[number + 1].rpartition(".")[2].strip() or "job"
        if word == "-c":
            break
        is_option = word.startswith("-") or (number > 0 and "=" in word)
        if not is_option and not _INTERPRETERS.fullmatch(PurePath(word).name):
            return _stem(word) or "job"
    return _stem(command[0]) or "job"


def _stem(path: str) -> str:
    return "" if path.startswith("-") else PurePath(path).stem.strip()
