"""What the commands about jobs share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...jobs.folder import JobNotFoundError, jobs_folder
from ..errors import CommandError
from ..shell import add_json

if TYPE_CHECKING:
    from ...jobs.manage import Jobs


def add_job(parser: argparse.ArgumentParser, what: str, example: str, json: str) -> None:
    """Add JOB, ``--job-dir`` and ``--json`` to a command.

    Args:
        parser: of the command.
        what: the description.
        example: one command line.
        json: what ``--json`` prints.
    """
    parser.add_argument(
        "job", metavar="JOB", help="id of the job, any unique beginning of it, or the cluster's own id"
    )
    add_common(parser, what, example, json)


def add_common(parser: argparse.ArgumentParser, what: str, example: str, json: str) -> None:
    """As :func:`add_job`, without JOB."""
    parser.description = what
    parser.epilog = example if "\n" in example else f"example:\n  {example}"
    parser.add_argument(
        "--job-dir",
        type=Path,
        metavar="DIR",
        help="folder of all jobs (default: $KERNEL_PYTORCH_JOBS, else ~/.kernel-pytorch/jobs)",
    )
    add_json(parser, json)


@contextmanager
def jobs_of(args: argparse.Namespace) -> Iterator[Jobs]:
    """The jobs in ``--job-dir``; within, mistakes in what was given end the command with status 2."""
    from ...jobs.manage import Jobs

    with mistakes():
        yield Jobs(jobs_folder(args.job_dir))


@contextmanager
def mistakes() -> Iterator[None]:
    """Raise mistakes in what was given as errors of the command, status 2."""
    try:
        yield
    except (JobNotFoundError, TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
