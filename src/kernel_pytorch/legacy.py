"""Moved modules and renamed names of both packages: what they are now, and until when the old ones work."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

REMOVED_IN = "v0.3.0"

_SCALE = "kernel_pytorch.distributed_scale"
_UTILS = "kernel_pytorch.utils"

# Old module -> the modules that have its contents now. The package of all of them has every name, too.
MOVED = {
    f"{_SCALE}.communication_optimization": (
        f"{_SCALE}.communication_primitives",
        f"{_SCALE}.network_optimization",
        f"{_SCALE}.communication_profiling",
    ),
    f"{_SCALE}.hardware_adaptation": (
        f"{_SCALE}.hardware_discovery",
        f"{_SCALE}.thermal_power_management",
        f"{_SCALE}.fault_tolerance",
        f"{_SCALE}.hardware_adapter",
    ),
    f"{_SCALE}.orchestration": (
        f"{_SCALE}.job_management",
        f"{_SCALE}.cluster_management",
        f"{_SCALE}.scaling_fault_tolerance",
    ),
    f"{_UTILS}.compiler_optimization_assistant": (
        f"{_UTILS}.model_analyzer",
        f"{_UTILS}.optimization_recommendations",
        f"{_UTILS}.compiler_assistant",
    ),
}

_DILATED = "dilated_attention_pytorch"
_RING = f"{_DILATED}.ring_attention"


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """What a class or function of earlier versions is called now."""

    modules: tuple[str, ...]
    """Modules in which the old name is still found."""
    home: str
    """Module of the new name."""
    new: str
    same: bool = True
    """Whether the old name is the same object; if not, its calls mean something else now."""


_ATTENTION = (_DILATED, _RING)

# By old name.
RENAMED = {
    "RingDilatedAttentionProduction": Renamed(modules=_ATTENTION, home=_RING, new="RingDilatedAttention"),
    "RingDilatedAttentionHybrid": Renamed(modules=_ATTENTION, home=_RING, new="RingDilatedAttention"),
    "RingDilatedAttentionTrue": Renamed(modules=_ATTENTION, home=_RING, new="RingDilatedAttention"),
    "RingDilatedAttentionHilbertOptimized": Renamed(
        modules=_ATTENTION, home=_RING, new="RingDilatedAttentionHilbert"
    ),
    "MemoryPool": Renamed(
        modules=(*_ATTENTION, f"{_DILATED}.core"), home=f"{_DILATED}.core.memory", new="UnifiedMemoryPool"
    ),
    "get_global_memory_pool": Renamed(
        modules=(_DILATED, f"{_DILATED}.core"),
        home=f"{_DILATED}.core.memory",
        new="UnifiedMemoryPool",
        same=False,
    ),
    "LongNet": Renamed(
        modules=(_DILATED, f"{_DILATED}.long_net"),
        home=f"{_DILATED}.models",
        new="LongNetEncoder",
        same=False,
    ),
    "LongNetLM": Renamed(
        modules=(f"{_DILATED}.long_net",), home=f"{_DILATED}.models", new="LongNetLM", same=False
    ),
}


def warn_moved(module: str) -> None:
    """Warn the importer of a moved module where its contents live now. Called by the shim on import."""
    *others, last = MOVED[module]
    homes = f"{', '.join(others)} and {last}" if others else last
    warnings.warn(
        f"{module} is now {homes}; the old module is removed in {REMOVED_IN}", FutureWarning, stacklevel=3
    )
