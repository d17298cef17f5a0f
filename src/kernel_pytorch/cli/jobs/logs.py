"""``kernel-pytorch logs``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from ..shell import print_json, status_of
from .common import add_job, jobs_of

_EXAMPLES = """\
examples:
  kernel-pytorch logs books-7f3a --rank 3
  kernel-pytorch logs books-7f3a --follow

Exit status: 0 also when Ctrl-C ends --follow; the job goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``logs``."""
    what = (
        "Print what the ranks of a job have printed, each line with its rank. If no rank has begun, what "
        "node programs and Slurm have printed, which may say why; it is always in logs/ of the job's folder."
    )
    add_job(parser, what, _EXAMPLES, "a JSON object by line")
    parser.add_argument("--rank", type=int, metavar="N", help="of this rank only")
    parser.add_argument("--follow", action="store_true", help="go on until the job has ended")


def run(args: argparse.Namespace) -> int:
    """Run ``logs`` and return its exit status."""
    with jobs_of(args) as jobs:
        lines = jobs.logs(args.job, rank=args.rank, follow=args.follow)
        try:
            print_lines(lines, as_json=args.json)
        except KeyboardInterrupt as interrupt:
            if not args.follow:
                raise
            return status_of(interrupt)
    return 0


def print_lines(lines: Iterable[str], *, as_json: bool) -> None:
    """Print log lines as they come."""
    for line in lines:
        if as_json:
            print_json({"line": line})
        else:
            print(line, flush=True)
