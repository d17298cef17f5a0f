"""``kernel-pytorch cancel``."""

from __future__ import annotations

import argparse

from ...jobs.facts import JobState
from ..errors import CommandError
from ..shell import print_json
from .common import add_job, jobs_of
from .output import state_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cancel``."""
    what = (
        "End a job for good: it is asked to save, then its processes are ended. The command returns when "
        "none is left. Exit status: 1 if the job had already ended by itself."
    )
    add_job(parser, what, "kernel-pytorch cancel books-7f3a", "the status as JSON")


def run(args: argparse.Namespace) -> int:
    """Run ``cancel`` and return its exit status."""
    with jobs_of(args) as jobs:
        status = jobs.cancel(args.job)
    if args.json:
        print_json(status)
    if status.state is not JobState.CANCELLED:
        raise CommandError(f"{status.job_id} was not cancelled; its state: {state_of(status)}", status=1)
    if not args.json:
        print(f"{status.job_id}: cancelled")
    return 0
