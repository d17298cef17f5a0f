"""Names of earlier versions, kept alive with a warning."""

from __future__ import annotations

import importlib
from typing import Any

from kernel_pytorch.legacy import RENAMED, warn_or_refuse

# Old method of the ring modules -> what it is now.
METHODS = {"get_memory_stats": "memory_pool.get_stats()", "clear_caches": "memory_pool.clear()"}


def renamed(name: str, module: str) -> Any:
    """What ``name`` is called now, for a module's ``__getattr__``; with a DeprecationWarning.

    Raises:
        AttributeError: it never was a name of ours.
        ImportError: the name is removed in this version.
    """
    now = RENAMED.get(name)
    if now is None or module not in now.modules:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    # An AttributeError would lose this message: `from module import name` raises one of its own instead.
    warn_or_refuse(
        f"{name} is now {now.new} (from {now.home} import {now.new}); the old name is removed",
        DeprecationWarning,
        ImportError,
        stacklevel=3,
    )
    if now.same:
        return getattr(importlib.import_module(now.home), now.new)
    return getattr(importlib.import_module(f"{__package__}.stand_ins"), name)


class OldMethods:
    """Methods that the ring modules of earlier versions had."""

    memory_pool: Any
    """None, or a :class:`UnifiedMemoryPool`."""

    def get_memory_stats(self) -> dict[str, Any]:
        """Deprecated: ``{"memory_pool": memory_pool.get_stats()}``, empty without a pool."""
        _warn_method("get_memory_stats")
        return {} if self.memory_pool is None else {"memory_pool": self.memory_pool.get_stats()}

    def clear_caches(self) -> None:
        """Deprecated: ``memory_pool.clear()``, if there is a pool. Nothing else is cached."""
        _warn_method("clear_caches")
        if self.memory_pool is not None:
            self.memory_pool.clear()


def _warn_method(name: str) -> None:
    warn_or_refuse(
        f"{name}() is now {METHODS[name]}; the old name is removed",
        DeprecationWarning,
        AttributeError,
        stacklevel=3,
    )
