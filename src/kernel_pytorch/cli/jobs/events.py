"""``kernel-pytorch events``."""

from __future__ import annotations

import argparse

from ..shell import print_json, status_of
from .common import add_job, jobs_of
from .output import event_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``events``."""
    what = "Show what happened to a job: attempts, failures, what was decided and why."
    add_job(parser, what, "kernel-pytorch events books-7f3a", "a JSON object by event")
    parser.add_argument("--follow", action="store_true", help="go on until the job has ended")


def run(args: argparse.Namespace) -> int:
    """Run ``events`` and return its exit status."""
    with jobs_of(args) as jobs:
        try:
            for event in jobs.events(args.job, follow=args.follow):
                if args.json:
                    print_json(event)
                else:
                    print(event_line(event), flush=True)
        except KeyboardInterrupt as interrupt:
            if not args.follow:
                raise
            return status_of(interrupt)
    return 0
