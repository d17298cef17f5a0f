"""``kernel-pytorch requeue``."""

from __future__ import annotations

import argparse

from ..shell import print_json
from .common import add_job, jobs_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``requeue``."""
    what = (
        "Run a job again from its last checkpoint. One that runs is asked to save and leave first; one that "
        "has ended starts anew. With --exclude a job that runs on Slurm is requeued by Slurm itself, which "
        "leaves it KillWait to save (30 s, unless the site has another)."
    )
    add_job(parser, what, "kernel-pytorch requeue books-7f3a --exclude n2", "job_id and native_id as JSON")
    parser.add_argument(
        "--exclude", metavar="NODE[,NODE...]", default="", help="nodes that are not to be used again"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``requeue`` and return its exit status."""
    exclude = tuple(node for node in args.exclude.split(",") if node)
    with jobs_of(args) as jobs:
        native_id = jobs.requeue(args.job, exclude=exclude)
        job_id = jobs.status(args.job).job_id
    if args.json:
        print_json({"job_id": job_id, "native_id": native_id})
    else:
        print(f"{job_id}: requeued as {native_id}")
    return 0
