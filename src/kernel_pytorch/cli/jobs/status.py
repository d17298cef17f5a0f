"""``kernel-pytorch status``."""

from __future__ import annotations

import argparse

from ..shell import print_json
from .common import add_job, jobs_of
from .output import status_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``status``."""
    what = (
        "Show how a job is: what the cluster says of it, and what its folder has. Where the cluster does not "
        "answer, the last that is known is shown with its time."
    )
    add_job(parser, what, "kernel-pytorch status books-7f3a", "the status as JSON; null: not known")


def run(args: argparse.Namespace) -> int:
    """Run ``status`` and return its exit status."""
    with jobs_of(args) as jobs:
        status = jobs.status(args.job)
    if args.json:
        print_json(status)
    else:
        print("\n".join(status_lines(status)))
    return 0
