"""The exceptions that a command turns into a line on stderr and an exit status."""

from __future__ import annotations


class CommandError(Exception):
    """The command cannot go on, for a reason its user can act on. Of several ranks, all raise it.

    Args:
        message: one line: what is wrong, with the values, and the way out.
        status: exit status, 2 for a mistake in what was given, 1 for a failure of the computation.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


class RankError(CommandError):
    """This rank cannot go on, and the others cannot be told."""
