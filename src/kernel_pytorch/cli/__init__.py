"""The ``kernel-pytorch`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .shell import Command, Program

_JOBS = "kernel_pytorch.cli.jobs"

PROGRAM = Program(
    "kernel-pytorch",
    "The machine and the job.",
    (
        Command("probe", "show this machine", "kernel_pytorch.cli.probe"),
        Command("submit", "run a job here or on a cluster", f"{_JOBS}.submit", takes_command=True),
        Command("status", "show how a job is", f"{_JOBS}.status"),
        Command("list", "show all jobs", f"{_JOBS}.list_jobs"),
        Command("logs", "print what a job prints", f"{_JOBS}.logs"),
        Command("events", "show what happened to a job", f"{_JOBS}.events"),
        Command("cancel", "end a job", f"{_JOBS}.cancel"),
        Command("requeue", "run a job again, from its last checkpoint", f"{_JOBS}.requeue"),
        Command("advise", "prove what makes a model faster", "kernel_pytorch.cli.advise"),
        Command("migrate", "rewrite old names in Python files", "kernel_pytorch.cli.migrate"),
        Command("profile", "show what communication costs", "kernel_pytorch.cli.profile", takes_command=True),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``kernel-pytorch`` with ``argv`` (default: ``sys.argv[1:]``) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["profile"]:
        from .profile.ranks import main_of_rank

        return main_of_rank(PROGRAM, arguments)
    return PROGRAM.main(arguments)
