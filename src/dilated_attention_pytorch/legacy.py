"""Names of earlier versions, kept alive with a warning."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

REMOVED_IN = "v0.3.0"

_RING = "dilated_attention_pytorch.ring_attention"

# Old name -> (module, new name).
RENAMED = {
    "RingDilatedAttentionProduction": (_RING, "RingDilatedAttention"),
    "RingDilatedAttentionHybrid": (_RING, "RingDilatedAttention"),
    "RingDilatedAttentionTrue": (_RING, "RingDilatedAttention"),
    "RingDilatedAttentionHilbertOptimized": (_RING, "RingDilatedAttentionHilbert"),
}


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
    return getattr(importlib.import_module(home), new)
