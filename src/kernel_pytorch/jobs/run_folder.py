"""Which folder a ``longnet train`` writes to, found without importing it, and that no two jobs share one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

from .folder import as_bytes

_MODULE = "dilated_attention_pytorch.train"
_CHECKPOINT = "checkpoint.pt"


def run_folder(argv: Sequence[str], cwd: str) -> bytes | None:
    """The absolute path of the folder that ``--run`` or ``--resume`` names, without links.

    Args:
        argv: the command, as ``job.json`` has it.
        cwd: where it runs, likewise.

    Returns:
        None: the command is no ``longnet train``, or names no run, so that it gets one named for the job.
    """
    words = _arguments_of_trainer(argv)
    option = run = ""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, has_value, value = word.partition("=")
        if name in ("--run", "--resume"):
            option, run = name, value if has_value else following
    if not run:
        return None
    below_runs = run if os.sep in run else os.path.join("runs", run)
    found = _path(cwd, run if option == "--resume" else below_runs)
    if not os.path.exists(os.path.join(found, os.fsencode(_CHECKPOINT))):
        found = _path(cwd, below_runs)
    return os.path.realpath(found)


def refuse_in_array(argv: Sequence[str], cwd: str, num_jobs: int) -> None:
    """Raise ValueError if the jobs of an array would write to one run folder: all have the same command."""
    if num_jobs > 1 and (run := run_folder(argv, cwd)) is not None:
        raise ValueError(
            f"the {num_jobs} jobs of the array would all write to the run folder {os.fsdecode(run)}: leave "
            "--run out, and each has a run of its own, named for it"
        )


def _arguments_of_trainer(argv: Sequence[str]) -> Sequence[str]:
    """What follows ``longnet train`` or ``-m dilated_attention_pytorch.train``; nothing in other commands."""
    for number, (word, following) in enumerate(pairwise(argv)):
        is_program = os.path.basename(word) == "longnet" and following == "train"
        if is_program or (word, following) == ("-m", _MODULE):
            return argv[number + 2 :]
    return ()


def _path(cwd: str, run: str) -> bytes:
    return os.path.join(as_bytes(cwd), as_bytes(run))
