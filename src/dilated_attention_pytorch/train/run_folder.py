"""The folder of a run: its name, and ``metrics.jsonl`` in it."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CommandError

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
PLOT = "loss.png"
SAMPLE = "sample.txt"


def check_new_run(run: str | None) -> None:
    """Raise CommandError if there is something already where the run ``run`` would go."""
    if run is None:
        return
    if run in ("", ".", ".."):
        raise CommandError(f"--run must name a folder of its own, got {run!r}")
    folder = _path_of(run)
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        way_out = f"continue it with --resume {folder}, or " if (folder / CHECKPOINT).exists() else ""
        raise CommandError(f"{folder} exists: {way_out}choose another --run")


def create_run_folder(run: str | None) -> Path:
    """Create the folder of a new run: ``runs/<name>``, or ``run`` itself if it has a slash.

    Args:
        run: None for a name that tells the time.

    Raises:
        CommandError: there is something already.
        OSError: it cannot be created.
    """
    if run is not None:
        check_new_run(run)
        folder = _path_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name = f"{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        folder = Path("runs", name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise
            number += 1
        else:
            return folder


def existing_run_folder(run: str) -> Path:
    """The folder that ``run`` names: a path, or a name under ``runs``.

    Raises:
        CommandError: there is none with a checkpoint in it.
    """
    candidates = [Path(run), _path_of(run)]
    for folder in candidates:
        if (folder / CHECKPOINT).exists():
            return folder
    for folder in candidates:
        if folder.is_dir():
            raise CommandError(f"no {CHECKPOINT} in {folder}")
    raise CommandError(f"no run {candidates[0]}")


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


def cut_metrics(file: BinaryIO, last_step: int) -> list[dict[str, Any]]:
    """Cut the metrics after ``last_step``, in one system call, and return the rows that stay.

    A line that is not whole, as a killed process leaves it, ends the rows.

    Raises:
        OSError: they cannot be read or written.
    """
    file.seek(0)
    rows = []
    end = 0
    for line in file:
        row = _row_of(line)
        if row is None or row["step"] > last_step:
            break
        rows.append(row)
        end += len(line)
    file.truncate(end)
    os.fsync(file.fileno())
    return rows


def append_row(file: BinaryIO, row: dict[str, Any]) -> None:
    """Append one line to the metrics and flush it."""
    file.write(json.dumps(row).encode() + b"\n")
    file.flush()


def _path_of(run: str) -> Path:
    return Path(run) if os.sep in run else Path("runs", run)


def _row_of(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
