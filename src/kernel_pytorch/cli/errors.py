"""Errors of the commands."""

from __future__ import annotations

from ..errors import KernelPytorchError


class CommandError(KernelPytorchError):
    """The command cannot continue, for a reason that the user can act on. Printed as one line.

    Args:
        message: what is wrong, with the values, and how to fix it.
        status: exit status: 2 for a usage error, 1 for a failure.
    """

    of_one = False
    """Whether only one of several processes raises it, so that this process must print it itself."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
