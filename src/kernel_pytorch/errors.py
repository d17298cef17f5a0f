"""The errors of this package."""

from __future__ import annotations


class KernelPytorchError(Exception):
    """Base of the errors that this package raises for what only the user can mend.

    Args:
        why: the reason, one line.
        fix: the way out; None where none is known.
    """

    def __init__(self, why: str, fix: str | None = None) -> None:
        super().__init__(why if fix is None else f"{why}: {fix}")
        self.why, self.fix = why, fix


class Unavailable(KernelPytorchError):  # noqa: N818  (a state of the machine, not a mistake)
    """Something that was asked for is not there, does not answer, or may not be used."""
