"""The ``kernel-pytorch`` command."""

from __future__ import annotations

from collections.abc import Sequence

from .shell import Command, Program

PROGRAM = Program(
    "kernel-pytorch",
    "The machine and the job.",
    (Command("probe", "show this machine", "kernel_pytorch.cli.probe"),),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``kernel-pytorch`` with ``argv`` (default: ``sys.argv[1:]``) and return its exit status."""
    return PROGRAM.main(argv)
