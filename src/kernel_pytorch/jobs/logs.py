"""What the ranks of a job print, and what happens to it, also while it runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .atomic import one_line
from .folder import JobFolder

_READ = 1 << 16
_LONGEST = 1 << 20
"""Bytes after which a line ends, newline or not: a progress bar may have none for days."""


class _Tail:
    """The lines of a file that may still grow."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset, self._rest = path, 0, b""

    def lines(self, *, last: bool = False) -> Iterator[str]:
        """Those since the last call that are whole; with ``last`` also what follows the last newline."""
        while data := self._read():
            *whole, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LONGEST:
                whole, self._rest = [*whole, self._rest], b""
            for line in whole:
                yield line.decode(errors="replace")
        if last and self._rest:
            yield self._rest.decode(errors="replace")
            self._rest = b""

    def _read(self) -> bytes:
        """What follows; nothing if the file does not exist yet."""
        with one_line(self.path, "read"):
            try:
                file = self.path.open("rb")
            except FileNotFoundError:
                return b""
            with file:
                file.seek(self._offset)
                data = file.read(_READ)
        self._offset += len(data)
        return data


def log_lines(folder: JobFolder, rank: int | None, turns: Iterator[None] | None) -> Iterator[str]:
    """Lines of ranks' logs, by attempt.

    Args:
        folder: the job's.
        rank: default: all, each line with its rank; if no rank began, the logs that may say why.
        turns: goes on as long as there may be more; None: only what is there.
    """
    tails: dict[Path, tuple[str, _Tail]] = {}
    for last in _rounds(turns):
        for path, prefix in _logs(folder, rank):
            tails.setdefault(path, (prefix, _Tail(path)))
        for prefix, tail in tails.values():
            for line in tail.lines(last=last):
                yield f"{prefix}{line}"
    if not tails and rank is None:
        for path in sorted(path for path in (folder.path / "logs").rglob("*") if path.is_file()):
            yield from _Tail(path).lines(last=True)


def follow_events(folder: JobFolder, turns: Iterator[None] | None) -> Iterator[dict[str, Any]]:
    """Events, the oldest first; ``turns`` as of :func:`log_lines`."""
    tail = _Tail(folder.path / "events.jsonl")
    for last in _rounds(turns):
        for line in tail.lines(last=last):
            with suppress(ValueError):
                yield json.loads(line)


def _rounds(turns: Iterator[None] | None) -> Iterator[bool]:
    """False for each turn, and True at the end, once more: what came with the end is not lost."""
    for _ in turns or ():
        yield False
    yield True


def _logs(folder: JobFolder, rank: int | None) -> Iterator[tuple[Path, str]]:
    for attempt in folder.attempt_numbers():
        logs = folder.path / "logs" / f"attempt-{attempt}"
        with suppress(FileNotFoundError):
            found = (re.fullmatch(r"rank-(\d+)\.log", name) for name in os.listdir(logs))
            for number in sorted(int(match[1]) for match in found if match):
                if rank in (None, number):
                    yield logs / f"rank-{number}.log", f"[{number}] " if rank is None else ""
