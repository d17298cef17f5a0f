"""``metrics.jsonl``: a row for each step of the line of steps that led to the last checkpoint.

A run that goes back to an earlier checkpoint begins another line there. The rows of the line that it left
move to ``metrics-abandoned.jsonl``, each with the number of the attempt that took its step, and return when
the run returns to a checkpoint of that line.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .checkpoint import sync_folder
from .errors import CommandError
from .run_folder import ABANDONED

Row = dict[str, Any]
History = Sequence[Mapping[str, Any]]
"""For each time that the run was resumed on this line ``step`` and ``attempt``, a number never used twice."""


def lock_metrics(path: Path) -> BinaryIO:
    """Open the metrics for appending, locked against other processes until they are closed.

    Raises:
        CommandError: another process writes them.
        OSError: they cannot be opened.
    """
    file = path.open("ab+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CommandError(f"another process is training in {path.parent}") from None
    return file


def take_over_metrics(path: Path) -> BinaryIO:
    """As :func:`lock_metrics`, of a copy that takes the file's place.

    A process that had it open, which may be alive on a machine that was given up, writes into nothing.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    if path.exists():
        shutil.copyfile(path, temporary)
    file = lock_metrics(temporary)
    os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
    return file


def append_row(file: BinaryIO, row: Row) -> None:
    """Append one line to the metrics and flush it."""
    file.write(json.dumps(row).encode() + b"\n")
    file.flush()


def common_steps(one: History, step: int, other: History, other_step: int) -> int:
    """How many steps two lines have in common that go up to ``step`` and to ``other_step``."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared]["attempt"] == other[shared]["attempt"]:
        shared += 1
    starts: list[int] = [entry["step"] for entry in (*one[shared:], *other[shared:])]
    return min([step, other_step, *starts])


def abandon_rows(file: BinaryIO, folder: Path, history: History, last_step: int, common: int) -> None:
    """Move the rows after ``common`` of the line ``history``, up to ``last_step``, out of the metrics.

    Raises:
        OSError: they cannot be read or written; no row is lost.
    """
    rows, ends = _rows_and_ends(file)
    with (folder / ABANDONED).open("ab+") as abandoned:
        abandoned.truncate(_rows_and_ends(abandoned)[1][-1])
        for row in rows:
            if common < row["step"] <= last_step:
                append_row(abandoned, {**row, "attempt": _attempt_of(history, row["step"])})
        os.fsync(abandoned.fileno())
    _truncate(file, ends[sum(row["step"] <= common for row in rows)])


def complete_rows(file: BinaryIO, folder: Path, history: History, step: int) -> list[Row]:
    """Make the metrics those of the line ``history`` up to ``step``, and return its rows.

    Rows after it are dropped, and a line that is not whole, as a killed process leaves it. Rows that are
    missing are taken from those that were abandoned.

    Raises:
        OSError: they cannot be read or written.
    """
    rows, ends = _rows_and_ends(file)
    count = sum(row["step"] <= step for row in rows)
    _truncate(file, ends[count])
    rows = rows[:count]
    if len(rows) < step and (folder / ABANDONED).exists():
        with (folder / ABANDONED).open("rb") as abandoned:
            found = {(row.pop("attempt"), row["step"]): row for row in _rows_and_ends(abandoned)[0]}
        for number in range(len(rows) + 1, step + 1):
            row = found.get((_attempt_of(history, number), number))
            if row is not None:
                append_row(file, row)
                rows.append(row)
    os.fsync(file.fileno())
    return rows


def _attempt_of(history: History, step: int) -> int:
    """The number of the attempt that took ``step``; 0 for the first."""
    attempts: Iterator[int] = (entry["attempt"] for entry in reversed(history) if entry["step"] < step)
    return next(attempts, 0)


def _rows_and_ends(file: BinaryIO) -> tuple[list[Row], list[int]]:
    """The rows up to the first line that is not whole, and the bytes before each and before what follows."""
    file.seek(0)
    rows, ends = [], [0]
    for line in file:
        row = _row_of(line)
        if row is None:
            break
        rows.append(row)
        ends.append(ends[-1] + len(line))
    return rows, ends


def _row_of(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _truncate(file: BinaryIO, end: int) -> None:
    """Cut the file in one system call."""
    file.truncate(end)
    os.fsync(file.fileno())
