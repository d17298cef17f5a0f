"""Modules of earlier versions, kept with a deprecation warning."""

from __future__ import annotations

import warnings

REMOVED_IN = "v0.3.0"

_SCALE = "kernel_pytorch.distributed_scale"
_UTILS = "kernel_pytorch.utils"

# Old module -> the modules that have its contents now.
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


def warn_moved(module: str) -> None:
    """Warn the importer of a moved module where its contents live now. Called by the shim on import."""
    *others, last = MOVED[module]
    homes = f"{', '.join(others)} and {last}" if others else last
    warnings.warn(
        f"{module} is now {homes}; the old module is removed in {REMOVED_IN}", FutureWarning, stacklevel=3
    )
