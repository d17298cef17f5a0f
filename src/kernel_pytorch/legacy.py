"""Moved modules and renamed names of both packages: what they are now, and until when the old ones work."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

REMOVED_IN = "v0.3.0"

_SCALE = "kernel_pytorch.distributed_scale"
_UTILS = "kernel_pytorch.utils"

# Old module -> the modules that have its contents now. Their package has all old names, too.
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


def warn_or_refuse(
    message: str,
    category: type[Warning],
    error: type[ImportError | AttributeError | TypeError],
    stacklevel: int,
) -> None:
    """Warn that something old is used, or refuse it in the version that has it no more.

    A pre-release of ``REMOVED_IN`` (0.3.0rc1, 0.3.0.dev2) counts as that version.

    Args:
        message: what to use instead and what happens to the old, such as ``"A is now B; A is removed"``.
        category: of the warning.
        error: raised once the old is removed.
        stacklevel: as that of ``warnings.warn``, counted from the caller.
    """
    from . import __version__

    if _release(__version__) >= _release(REMOVED_IN):
        raise error(f"{message} in {REMOVED_IN}, this is {__version__}")
    warnings.warn(f"{message} in {REMOVED_IN}", category, stacklevel=stacklevel + 1)


def warn_moved(module: str) -> None:
    """Warn the importer of a moved module where its contents live now. Called by the shim on import.

    Raises:
        ImportError: the module is removed in this version.
    """
    *others, last = MOVED[module]
    homes = f"{', '.join(others)} and {last}" if others else last
    warn_or_refuse(
        f"{module} is now {homes}; the old module is removed", FutureWarning, ImportError, stacklevel=3
    )


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version before any suffix: ``(0, 3, 0)`` for "0.3", "v0.3.0" and "0.3.0rc1"."""
    release = re.match(r"v?(\d+(?:\.\d+)*)", version)
    assert release, version
    numbers = [int(number) for number in release[1].split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))
