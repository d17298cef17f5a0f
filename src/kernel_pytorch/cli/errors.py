from __future__ import annotations

from ..errors import KernelPytorchError


class CommandError(KernelPytorchError):
    """The command cannot go on, for a reason that its user can act on: one line and an exit status.

    Args:
        message: what is wrong, with the values, and the way out.
        status: exit status, 2 for a mistake in what was given, 1 for a failure.
    """

    of_one = False
    """Of several processes only this one raises it, and the others cannot be told."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
