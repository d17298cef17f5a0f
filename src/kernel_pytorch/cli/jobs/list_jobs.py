"""``kernel-pytorch list``."""

from __future__ import annotations

import argparse

from ..shell import print_json
from .common import add_common, jobs_of
from .output import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``list``."""
    what = "Show all jobs, the newest first."
    add_common(parser, what, "kernel-pytorch list", "a JSON array of what 'status --json' prints")


def run(args: argparse.Namespace) -> int:
    """Run ``list`` and return its exit status."""
    with jobs_of(args) as jobs:
        statuses = jobs.list()
    if args.json:
        print_json(statuses)
    elif statuses:
        print("\n".join(table(statuses)))
    else:
        print("no jobs")
    return 0
