"""Which checkpoints a run's folder has: the last, the best by held-out loss, and earlier ones by step.

``checkpoint.pt`` is the last. ``best.pt`` and ``checkpoint-<step>.pt`` were that once: they are hard links to
it, copies where a file system has none. Each names the folder with its tensors, if they are in shards.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .checkpoint import load_checkpoint, sync_folder
from .errors import CommandError
from .run_folder import BEST, CHECKPOINT

_NUMBERED = re.compile(r"checkpoint-(\d+)\.pt")
_SHARDS = re.compile(r"shards-\d+(-\d+)?")


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """The earlier checkpoints that were kept, by step, in order."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def find_checkpoint(folder: Path, which: str) -> Path:
    """The file of a checkpoint.

    Args:
        folder: of the run.
        which: ``"last"``, ``"best"``, or a step.

    Raises:
        CommandError: there is none, and which there are.
    """
    numbered = numbered_checkpoints(folder)
    named = {
        name: path for name, path in (("last", folder / CHECKPOINT), ("best", folder / BEST)) if path.exists()
    }
    if which in named:
        return named[which]
    if which not in ("last", "best") and not which.isdecimal():
        raise CommandError(f"--checkpoint must be last, best or a step, got {which!r}")
    there = list(named)
    if which.isdecimal():
        if int(which) in numbered:
            return numbered[int(which)]
        steps = {name: load_checkpoint(path)["step"] for name, path in named.items()}
        for name, step in steps.items():
            if step == int(which):
                return named[name]
        there = [f"{name} (step {step})" for name, step in steps.items()]
    raise CommandError(
        f"{folder} has no checkpoint {which}: it has {', '.join([*there, *map(str, numbered)])}"
    )


def keep_as(folder: Path, name: str) -> None:
    """Keep the checkpoint that is the last now by another name too, in the place of what had that name.

    Raises:
        OSError: what had the name is untouched.
    """
    temporary = folder / (name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(folder / CHECKPOINT, temporary)
    except OSError:  # no hard links here
        shutil.copyfile(folder / CHECKPOINT, temporary)
    os.replace(temporary, folder / name)
    temporary.unlink(missing_ok=True)  # of two names of one file, replace leaves both
    sync_folder(folder)


def is_shards_folder(name: str) -> bool:
    """Whether ``name`` is one that :func:`new_shards_folder` gives."""
    return _SHARDS.fullmatch(name) is not None


def new_shards_folder(folder: Path, step: int) -> Path:
    """Make a folder for the tensors of a new checkpoint of ``step``."""
    number = 0
    while True:
        made = folder / (f"shards-{step}" if number == 0 else f"shards-{step}-{number}")
        try:
            made.mkdir()
        except FileExistsError:
            number += 1
        else:
            return made


def remove_unnamed_shards(folder: Path) -> None:
    """Remove the shards that no checkpoint names, such as those of a process killed in a save."""
    shards = {path for path in folder.iterdir() if is_shards_folder(path.name)}
    if not shards:
        return
    files = [folder / CHECKPOINT, folder / BEST, *numbered_checkpoints(folder).values()]
    for file in files:
        if file.exists():
            shards.discard(folder / load_checkpoint(file).get("shards", {}).get("folder", ""))
    for path in shards:
        shutil.rmtree(path, ignore_errors=True)
