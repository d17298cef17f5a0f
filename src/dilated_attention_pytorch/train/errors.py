"""The exceptions that a command turns into a line on stderr and an exit status."""

from __future__ import annotations

from kernel_pytorch.cli.errors import CommandError

__all__ = ["CommandError", "RankError"]


class RankError(CommandError):
    """This rank cannot go on, and the others cannot be told. Of a CommandError, all ranks raise it."""

    of_one = True
