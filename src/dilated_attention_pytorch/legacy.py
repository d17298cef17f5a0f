"""Names of earlier versions, kept alive with a warning."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

REMOVED_IN = "v0.3.0"

_RING = "dilated_attention_pytorch.ring_attention"
_MEMORY = "dilated_attention_pytorch.core.memory"
_MODELS = "dilated_attention_pytorch.models"

# Old name -> (module, new name).
RENAMED = {
    "RingDilatedAttentionProduction": (_RING, "RingDilatedAttention"),
    "RingDilatedAttentionHybrid": (_RING, "RingDilatedAttention"),
    "RingDilatedAttentionTrue": (_RING, "RingDilatedAttention"),
    "RingDilatedAttentionHilbertOptimized": (_RING, "RingDilatedAttentionHilbert"),
    "MemoryPool": (_MEMORY, "UnifiedMemoryPool"),
    "get_global_memory_pool": (_MEMORY, "UnifiedMemoryPool"),
    "LongNet": (_MODELS, "LongNetEncoder"),
    "LongNetLM": (_MODELS, "LongNetLM"),
}
# Old names whose calls mean something else now: `stand_ins` answers them.
STOOD_IN = ("get_global_memory_pool", "LongNet", "LongNetLM")
# Old method of the ring modules -> what it is now.
METHODS = {"get_memory_stats": "memory_pool.get_stats()", "clear_caches": "memory_pool.clear()"}


def renamed(name: str, module: str) -> Any:
    """What ``name`` is called now, for a module's ``__getattr__``; with a DeprecationWarning.

    Raises:
        AttributeError: it never was a name of ours.
    """
    if name not in RENAMED:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    home, new = RENAMED[name]
    warnings.warn(
        f"{name} is now {new} (from {home} import {new}); the old name is removed in {REMOVED_IN}",
        DeprecationWarning,
        stacklevel=3,
    )
    if name in STOOD_IN:
        home, new = f"{__package__}.stand_ins", name
    return getattr(importlib.import_module(home), new)


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
    warnings.warn(
        f"{name}() is now {METHODS[name]}; the old name is removed in {REMOVED_IN}",
        DeprecationWarning,
        stacklevel=3,
    )
