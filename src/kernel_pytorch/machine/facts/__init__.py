"""What a machine consists of: plain data, whoever read it.

A field is None where the fact could not be read; :class:`Missing` tells why. Sizes are in bytes where the
name says bytes, in 1e9 bytes where it says ``_gb``; CPUs are the numbers that Linux gives them.
"""

from .device import (
    DeviceCapability,
    DeviceInfo,
    DeviceLink,
    GpuIdentity,
    HardwareVendor,
    LinkKind,
    MigInstance,
    PciLink,
    Peaks,
    ThermalState,
)
from .host import BlockDevice, Cache, CpuPackage, HugePages, Limits, NetworkInterface, NumaNode
from .topology import ClusterTopology, Missing, NodeTopology, RankPlace

__all__ = [
    "BlockDevice",
    "Cache",
    "ClusterTopology",
    "CpuPackage",
    "DeviceCapability",
    "DeviceInfo",
    "DeviceLink",
    "GpuIdentity",
    "HardwareVendor",
    "HugePages",
    "Limits",
    "LinkKind",
    "MigInstance",
    "Missing",
    "NetworkInterface",
    "NodeTopology",
    "NumaNode",
    "PciLink",
    "Peaks",
    "RankPlace",
    "ThermalState",
]
