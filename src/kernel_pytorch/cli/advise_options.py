"""Values of the options of ``kernel-pytorch advise``."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .errors import CommandError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(i?)B", re.IGNORECASE | re.ASCII)
_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h)?", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def memory_bytes(text: str) -> int:
    """Bytes, of a text such as 8GB (1e9) or 8GiB (2^30).

    Raises:
        CommandError: it is no such text, or not positive.
    """
    found = _SIZE.fullmatch(text.strip())
    prefix = found[2].upper() if found else ""
    size = 0
    if found and not (found[3] and not prefix):
        size = int(float(found[1]) * (_BINARY if found[3] else _UNITS)[prefix])
    if size < 1:
        raise CommandError(f"--memory must be positive with a unit, as 8GB or 512MiB, got {text!r}")
    return size


def seconds(text: str) -> float:
    """Seconds, of a text such as 120s, 2m or 120.

    Raises:
        CommandError: it is no such text, or not positive.
    """
    found = _TIME.fullmatch(text.strip())
    value = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    if not 0 < value < float("inf"):
        raise CommandError(f"--budget must be positive, as 120s or 5m, got {text!r}")
    return value


def lengths(text: str) -> tuple[int, ...]:
    """Lengths, of a text such as 512,1024, each once and in order.

    Raises:
        CommandError: it is no such text.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9]\d{0,11}", part, re.ASCII) for part in parts):
        raise CommandError(f"--lengths must be positive numbers, as 512,1024, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def check_output(path: Path, option: str, own: Sequence[Path]) -> None:
    """Refuse a file that cannot be written, or is one of the user's.

    Raises:
        CommandError: it is.
    """
    for file in own:
        if path.resolve() == file.resolve() or (path.exists() and path.samefile(file)):
            raise CommandError(f"{option} {path} would overwrite {file}")
    if path.is_dir():
        raise CommandError(f"{option} {path} is a folder")
    if path.exists() and not path.is_file():
        raise CommandError(f"{option} {path} is not a regular file, and would be replaced by one")
    if path.exists() and not os.access(path, os.W_OK):
        raise CommandError(f"{option} {path} cannot be written: permission denied")
    folder = path.resolve().parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"{option} {path} cannot be written: {error.strerror}") from error
