"""Files of text: finding them, reading them once, and reading parts of them later.

Letters: N bytes of a text.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .errors import RankError
from .run_folder import CHECKPOINT

_CHUNK = 1 << 20

Identity = tuple[int, int]
"""Device and inode: the same for all names of a file."""


class Text(Protocol):
    """What can be sliced like a tensor ``[N]``: a tensor, or files that are read where they are sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, window: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Skipped:
    """What was found below a folder, and left out."""

    path: Path
    reason: str
    """Such as ``dangling link``."""


@dataclass(frozen=True)
class TextFile:
    """A file that was read."""

    path: Path
    size: int
    """Bytes."""
    digest: bytes
    """BLAKE2b of its content."""
    content: bytearray | None
    """None if the content was not kept."""


@dataclass(frozen=True)
class Piece:
    """Bytes ``[start, stop)`` of a file."""

    path: Path
    start: int
    stop: int


class FileText:
    """The bytes of pieces of files, one after the other, read from the files whenever they are sliced.

    Args:
        pieces: in order.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._starts = [0, *accumulate(piece.stop - piece.start for piece in pieces)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, window: slice, /) -> Tensor:
        """The bytes of a slice without a step: uint8.

        Raises:
            RankError: a file has become unreadable, or shorter.
        """
        start, stop, step = window.indices(len(self))
        assert step == 1
        content = bytearray(max(stop - start, 0))
        if not content:
            return torch.empty(0, dtype=torch.uint8)
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            piece, ends = self._pieces[index], min(stop, self._starts[index + 1])
            into = memoryview(content)[start - stop :][: ends - start]
            _read_into(into, piece.path, piece.start + start - self._starts[index])
            start, index = ends, index + 1
        return torch.frombuffer(content, dtype=torch.uint8)


def find_files(root: Path, seen: set[Identity], skipped: list[Skipped]) -> Iterator[tuple[Path, int]]:
    """The regular files at or below ``root`` and their sizes in bytes, in the order of their paths.

    Links are followed, and what has been seen under another name is left out. So are hidden files and
    folders and the folders of runs.

    Args:
        root: a folder, or a file.
        seen: files and folders to leave out; what is found is added.
        skipped: what cannot be read is added.
    """
    above = {_identity(folder.stat()) for folder in root.resolve().parents}
    left = [root]
    while left:
        path = left.pop()
        try:
            status = path.stat()
            identity = _identity(status)
            if stat.S_ISDIR(status.st_mode) and identity in above:
                skipped.append(Skipped(path, "link to a folder above"))
            elif identity in seen:
                pass
            elif stat.S_ISDIR(status.st_mode):
                seen.add(identity)
                names = sorted(os.listdir(path), reverse=True)
                if CHECKPOINT not in names:
                    left += [path / name for name in names if not name.startswith(".")]
            elif stat.S_ISREG(status.st_mode):
                seen.add(identity)
                yield path, status.st_size
            else:
                skipped.append(Skipped(path, "not a regular file"))
        except OSError as error:
            dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
            skipped.append(Skipped(path, "dangling link" if dangling else _reason(error)))


def read_file(path: Path, *, any_bytes: bool, utf8: bool, keep: bool) -> TextFile | Skipped:
    """Read a file to its end.

    Args:
        path: of a regular file.
        utf8: take a file only if it is UTF-8.
        any_bytes: take a file with NUL bytes too, which text files do not have.
        keep: keep its content.

    Returns:
        The file, or why it is not text.
    """
    digest, size, content = hashlib.blake2b(digest_size=16), 0, bytearray()
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                if not any_bytes and b"\0" in chunk:
                    return Skipped(path, "binary")
                if utf8:
                    decoder.decode(chunk)
                digest.update(chunk)
                size += len(chunk)
                if keep:
                    content += chunk
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return Skipped(path, "not UTF-8")
    except OSError as error:
        return Skipped(path, _reason(error))
    return TextFile(path, size, digest.digest(), content if keep else None)


def decoded(text: Text) -> Iterator[str]:
    """A text of UTF-8 in parts of about 1 MiB that end with a line, where lines are not longer.

    What is left of a character at either end is dropped.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    continuation = bytes(range(0x80, 0xC0))
    rest = ""
    for start in range(0, len(text), _CHUNK):
        content = text[start : start + _CHUNK].numpy().tobytes()
        rest += decoder.decode(content.lstrip(continuation) if start == 0 else content)
        end = rest.rfind("\n") + 1 or len(rest)
        yield rest[:end]
        rest = rest[end:]
    if rest:
        yield rest


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _read_into(content: memoryview, path: Path, start: int) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            while content:
                count = os.preadv(file.fileno(), [content], start)
                if count == 0:
                    raise RankError(f"{path} has become shorter since it was read: start again", status=1)
                content, start = content[count:], start + count
    except OSError as error:
        raise RankError(f"cannot read {path} any more: {_reason(error)}", status=1) from error
