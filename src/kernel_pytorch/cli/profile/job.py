"""``kernel-pytorch profile job``: a training job with all of its collectives recorded."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from ..errors import CommandError

_EXAMPLES = """\
examples:
  kernel-pytorch profile job --output run -- torchrun --nproc-per-node 4 train.py --steps 100
  kernel-pytorch profile job --output run --check -- torchrun --nproc-per-node 4 -m my.training
  torchrun --nproc-per-node 4 -m kernel_pytorch.cli profile job --output run -- train.py --steps 100

Nothing is changed in the script. A step ends where its optimizer has stepped. The folder gets a file for each
rank, written call by call, so that it can be read after kill -9 too; if a call fails or times out, what each
rank was in (rank-N.hang.json, hang.json); and in the end profile.json, trace.json and report.html.

Exit status: that of the command (128 + N if signal N has ended it), 2 a mistake in what was given.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``profile job``."""
    parser.description = (
        "Run a torchrun command with all collectives of its ranks recorded, and say what they cost and which "
        "rank and line is to blame. Signals are handed on to the command."
    )
    parser.epilog = _EXAMPLES
    parser.usage = "%(prog)s --output FOLDER [--check] -- COMMAND ..."
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="where the records go; made if missing"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="have the ranks agree on each collective before they make it, and fail on all ranks where they "
        "do not: slow, to find the line",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``profile job`` and return the exit status of the command."""
    if not args.user_command:
        raise CommandError("no command: give torchrun ... train.py after --")
    if importlib.util.find_spec("torch") is None:
        raise CommandError("it needs PyTorch: pip install torch")
    from ...links.profile.job import (
        JobCommandError,
        is_launch,
        on_one_node,
        recorded_launch,
        recorded_rank,
        report_of,
    )
    from ...links.profile.job import run as run_command

    folder, command = Path(args.output).absolute(), args.user_command
    inside = "TORCHELASTIC_RUN_ID" in os.environ and not is_launch(command)
    try:
        recorded = (recorded_rank if inside else recorded_launch)(command, folder, check=args.check)
    except JobCommandError as error:
        raise CommandError(str(error)) from error
    if not inside and any(folder.glob("*.jsonl")) and on_one_node(command):  # a second node finds the first's
        raise CommandError(f"--output {folder} has the records of another job: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if inside:
        sys.stdout.flush()
        os.execvp(recorded[0], recorded)
    status = run_command(recorded)
    print(report_of(Path(args.output)))
    return status
