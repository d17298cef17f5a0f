"""Every call of a module within something else. Imports torch alone: its text goes to written files.

The class is replaced, not the instance's ``forward``: a copy of the model then calls the copy, not the
original, and names in the ``state_dict`` stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def call_within(model: nn.Module, context: Callable[[], Any]) -> None:
    """Run each call of a model, hooks and compiled code included, within ``context()``."""
    kind = type(model)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with context():
            return kind.__call__(self, *args, **kwargs)

    model.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def call_between(model: nn.Module, before: Callable[[Any], Any], after: Callable[[Any], Any]) -> None:
    """Change the arguments, and the outputs, of each call of a model."""
    kind = type(model)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return after(kind.__call__(self, *before(args), **before(kwargs)))

    model.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
