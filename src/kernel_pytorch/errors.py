"""The errors of this package."""

from __future__ import annotations


class KernelPytorchError(Exception):
    """Base of this package's errors that only the user can fix.

    Args:
        why: the reason, one line.
        fix: what to do; None if unknown.
    """

    def __init__(self, why: str, fix: str | None = None) -> None:
        super().__init__(why if fix is None else f"{why}: {fix}")
        self.why, self.fix = why, fix

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled without calling ``__init__``, whose arguments subclasses change."""
        return _unpickled, (type(self), self.args), vars(self)


def _unpickled(kind: type[KernelPytorchError], args: tuple[object, ...]) -> KernelPytorchError:
    error = kind.__new__(kind, *args)
    error.args = args  # which OSError leaves to ``__init__``
    return error


class Unavailable(KernelPytorchError):  # noqa: N818  (a state of the machine, not a mistake)
    """Something requested does not exist, does not respond, or may not be used."""
