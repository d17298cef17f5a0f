"""Accelerators on the PCI bus, from sysfs: what should be there, even where no driver can tell more."""

from __future__ import annotations

from dataclasses import dataclass

from ..facts import HardwareVendor
from ..files import Files

_DEVICES = "sys/bus/pci/devices"
_VENDORS = {"0x10de": HardwareVendor.NVIDIA, "0x1002": HardwareVendor.AMD, "0x8086": HardwareVendor.INTEL}
_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")
"""VGA, 3D and display controllers, processing accelerators (PCI Code and ID Assignment Specification)."""


@dataclass(frozen=True, kw_only=True)
class PciFunction:
    address: str
    vendor: HardwareVendor
    device: str
    """The vendor's number of the model, 0x2330."""
    numa_node: int | None


def accelerators(files: Files) -> tuple[PciFunction, ...]:
    """Display controllers and accelerators of the three vendors, integrated graphics included."""
    found = []
    for address in files.names(_DEVICES):
        folder = f"{_DEVICES}/{address}"
        vendor = _VENDORS.get(files.text(f"{folder}/vendor") or "")
        if vendor and (files.text(f"{folder}/class") or "").startswith(_CLASSES):
            device = files.text(f"{folder}/device") or "?"
            numa = numa_node_of(files, address)
            found.append(PciFunction(address=address, vendor=vendor, device=device, numa_node=numa))
    return tuple(found)


def numa_node_of(files: Files, address: str | None) -> int | None:
    """The NUMA node of a PCI function; None where the firmware does not tell (-1)."""
    return files.count(f"{_DEVICES}/{address}/numa_node") if address else None
