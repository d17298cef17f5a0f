"""Lines of the written file: the text of the functions that a strategy applies, and calls of them."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Callable
from typing import Any

WIDTH = 100


def text_of(function: Callable[..., Any] | type) -> list[str]:
    """The lines of a function or class that needs nothing of this package."""
    return inspect.getsource(function).rstrip().splitlines()


def assigned(name: str, value: Any) -> list[str]:
    """``name = value``, over as many lines as it needs."""
    first, *others = pprint.pformat(value, width=WIDTH - len(name) - 3, compact=True).splitlines()
    return [f"{name} = {first}", *(" " * (len(name) + 3) + line for line in others)]
