"""A job's hardware: what there is, how it is, and where work goes. Names are loaded when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .fault_tolerance import HardwareHealthMonitor as HardwareHealthMonitor
    from .hardware_adapter import DeviceMeshOptimizer as DeviceMeshOptimizer
    from .hardware_adapter import HardwareAdapter as HardwareAdapter
    from .hardware_adapter import create_device_mesh_optimizer as create_device_mesh_optimizer
    from .hardware_discovery import ClusterTopology as ClusterTopology
    from .hardware_discovery import DeviceCapability as DeviceCapability
    from .hardware_discovery import DeviceInfo as DeviceInfo
    from .hardware_discovery import HardwareTopologyManager as HardwareTopologyManager
    from .hardware_discovery import HardwareVendor as HardwareVendor
    from .hardware_discovery import NodeTopology as NodeTopology
    from .hardware_discovery import ThermalState as ThermalState
    from .hardware_discovery import create_hardware_manager as create_hardware_manager
    from .thermal_power_management import PowerEfficiencyOptimizer as PowerEfficiencyOptimizer
    from .thermal_power_management import ThermalAwareScheduler as ThermalAwareScheduler
    from .thermal_power_management import create_thermal_scheduler as create_thermal_scheduler

_HOMES = {
    "fault_tolerance": ["HardwareHealthMonitor"],
    "hardware_adapter": ["DeviceMeshOptimizer", "HardwareAdapter", "create_device_mesh_optimizer"],
    "hardware_discovery": [
        "ClusterTopology",
        "DeviceCapability",
        "DeviceInfo",
        "HardwareTopologyManager",
        "HardwareVendor",
        "NodeTopology",
        "ThermalState",
        "create_hardware_manager",
    ],
    "thermal_power_management": [
        "PowerEfficiencyOptimizer",
        "ThermalAwareScheduler",
        "create_thermal_scheduler",
    ],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
