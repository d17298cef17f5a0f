"""Accelerators on the PCI bus, from sysfs: found even if no driver reads them."""

from __future__ import annotations

from dataclasses import dataclass

from ..facts import HardwareVendor
from ..files import Files

_DEVICES = "sys/bus/pci/devices"
_VENDORS = {"0x10de": HardwareVendor.NVIDIA, "0x1002": HardwareVendor.AMD, "0x8086": HardwareVendor.INTEL}
_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")
"""VGA, 3D, other display controllers, processing accelerators (PCI Code and ID Assignment Specification)."""
_INTEGRATED = {HardwareVendor.INTEL: "0000:00:02", HardwareVendor.AMD: "0000:00:01"}
"""Slot of a CPU's graphics. On AMD since Zen they share a slot with the CPU's security processor instead."""
_SECURITY_PROCESSOR = "0x1080"


@dataclass(frozen=True, kw_only=True)
class PciFunction:
    """A function of a device on the PCI bus."""

    address: str
    vendor: HardwareVendor
    device: str
    """The vendor's device id, such as 0x2330."""
    numa_node: int | None
    driver: str | None
    """The kernel driver bound to it; vfio-pci if it is passed through to a virtual machine."""
    integrated: bool
    """Whether it is the graphics of a CPU, which drivers may leave out."""

    @property
    def slot(self) -> str:
        """The address without the function."""
        return _slot(self.address)


def accelerators(files: Files) -> tuple[PciFunction, ...]:
    """Display controllers and accelerators of NVIDIA, AMD and Intel, including integrated graphics.

    Virtual functions (SR-IOV) are left out: they are parts of a device, for virtual machines.
    """
    found = []
    for address in files.names(_DEVICES):
        folder = f"{_DEVICES}/{address}"
        vendor = _VENDORS.get(files.text(f"{folder}/vendor") or "")
        kind = files.text(f"{folder}/class") or ""
        if vendor and kind.startswith(_CLASSES) and not files.exists(f"{folder}/physfn"):
            found.append(
                PciFunction(
                    address=address,
                    vendor=vendor,
                    device=files.text(f"{folder}/device") or "?",
                    numa_node=numa_node_of(files, address),
                    driver=files.link_name(f"{folder}/driver"),
                    integrated=kind.startswith("0x03") and _integrated(files, address, vendor),
                )
            )
    return tuple(found)


def _integrated(files: Files, address: str, vendor: HardwareVendor) -> bool:
    slot = _slot(address)
    others = (files.text(f"{_DEVICES}/{slot}.{function}/class") or "" for function in range(1, 8))
    return slot == _INTEGRATED.get(vendor) or (
        vendor is HardwareVendor.AMD and any(kind.startswith(_SECURITY_PROCESSOR) for kind in others)
    )


def _slot(address: str) -> str:
    return address.rpartition(".")[0]


def numa_node_of(files: Files, address: str | None) -> int | None:
    """The NUMA node of a PCI function; None if the firmware does not give one (-1)."""
    return files.count(f"{_DEVICES}/{address}/numa_node") if address else None
