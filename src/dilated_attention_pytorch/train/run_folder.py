"""The folder of a run: how it is named and found, and the names of its files."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

from .errors import CommandError

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
CONFIG = "config.json"
ATTEMPT = "attempt.json"
METRICS = "metrics.jsonl"
ABANDONED = "metrics-abandoned.jsonl"
PLOT = "loss.png"
SAMPLE = "sample.txt"
_BEFORE_CHECKPOINT = re.compile(r"(attempt|config|tokenizer)\.json|metrics\.jsonl|shards-\d+(-\d+)?|.+\.tmp")


def check_new_run(run: str | None) -> None:
    """Raise CommandError if there is something already where the run ``run`` would go.

    A folder that a run left before its first checkpoint is taken over, as is an empty one.
    """
    if run is None:
        return
    if run in ("", ".", ".."):
        raise CommandError(f"--run must name a folder of its own, got {run!r}")
    folder = run_path(run)
    if os.path.lexists(folder) and not (folder.is_dir() and _has_no_steps(folder)):
        raise run_exists(folder)


def run_exists(folder: Path) -> CommandError:
    """The error of a new run that would go where something else is."""
    way_out = f"continue it with --resume {folder}, or " if (folder / CHECKPOINT).exists() else ""
    return CommandError(f"{folder} exists: {way_out}choose another --run")


def _has_no_steps(folder: Path) -> bool:
    """Whether nothing is in a folder but what a run writes before its first checkpoint."""
    return all(
        _BEFORE_CHECKPOINT.fullmatch(path.name) and (path.name != METRICS or path.stat().st_size == 0)
        for path in folder.iterdir()
    )


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
        folder = run_path(run)
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
    if run == "":
        raise CommandError("the run must be a folder or its name below runs, got ''")
    candidates = [Path(run), run_path(run)]
    if candidates[0].is_file():
        raise CommandError(f"{run} is a file: give the folder of the run")
    for folder in candidates:
        if (folder / CHECKPOINT).exists():
            return folder
    for folder in candidates:
        if folder.is_dir():
            way_out = f": start it again, longnet train --run {folder}" if _has_no_steps(folder) else ""
            raise CommandError(f"no {CHECKPOINT} in {folder}{way_out}")
    raise CommandError(f"no run {candidates[0]}")


def run_path(run: str) -> Path:
    """Where the run of this name, or in this folder, goes."""
    return Path(run) if os.sep in run else Path("runs", run)
