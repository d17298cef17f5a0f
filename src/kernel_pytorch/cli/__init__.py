"""The ``kernel-pytorch`` command."""

from __future__ import annotations

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
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``kernel-pytorch`` with ``argv`` (default: ``sys.argv[1:]``) and return its exit status."""
    return PROGRAM.main(argv)
