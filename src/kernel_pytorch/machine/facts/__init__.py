"""What a machine consists of: plain data, independent of its source.

A field is None where the fact could not be read; :class:`Missing` gives the reason. Names ending in
``_bytes`` are in bytes, in ``_gb`` in 1e9 bytes. CPUs are given by Linux's CPU numbers.
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
