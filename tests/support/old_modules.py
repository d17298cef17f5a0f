"""Moved modules, imported as if for the first time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_imported(module: str) -> Iterator[None]:
    """Let the next import run the module; afterwards everything is as it was."""
    package, _, name = module.rpartition(".")
    parent = importlib.import_module(package)
    before, attribute = sys.modules.pop(module, None), vars(parent).get(name)
    try:
        yield
    finally:
        sys.modules.pop(module, None)
        vars(parent).pop(name, None)
        if before is not None:
            sys.modules[module] = before
        if attribute is not None:
            setattr(parent, name, attribute)
