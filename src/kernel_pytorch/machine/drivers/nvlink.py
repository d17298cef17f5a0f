"""Which GPUs NVLink joins, through NVML."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from ..facts import DeviceLink, LinkKind
from ..possible import is_possible
from .driver import scaled
from .nvml import Nvml

_MAX_LINKS = 36
"""NVML_NVLINK_MAX_LINKS of nvml.h 13: an older binding's would hide links. NVML refuses numbers beyond."""

# NVML numbers the versions 1.0, 2.0, 2.2, 3.0, 3.1, 4.0, 5.0, 6.0 (nvmlNvlinkVersion_t).
_VERSIONS = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 5, 8: 6}
# nvmlIntNvLinkDeviceType_t
_GPU, _SWITCH = 0, 2
# GB/s of one link in one direction, where the driver does not tell (NVIDIA's page on NVLink).
_RATES_GB_S = {1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 50.0}


def read_nvlinks(nvml: Nvml, numbers: dict[str, int]) -> dict[tuple[int, int], DeviceLink]:
    """The links by pair of NVML's numbers. GPUs that meet in NVSwitches reach each other with all of theirs.

    Args:
        numbers: of the GPUs, by PCI address.
    """
    direct: Counter[tuple[int, int]] = Counter()
    switched: dict[int, int] = {}
    versions: dict[int, int | None] = {}
    rates: dict[int, float | None] = {}
    for index, handle in nvml.handles.items():
        peers = _peers(nvml, handle, numbers)
        for peer in peers:
            if peer is not None and numbers.get(peer, -1) > index:
                direct[index, numbers[peer]] += 1
        if None in peers:
            switched[index] = peers.count(None)
        if peers:
            version = _version(nvml, handle)
            rate = scaled(nvml.field(handle, "NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON"), 1e-3)
            versions[index] = version
            told = rate is not None and is_possible("nvlink_gb_s", rate)
            rates[index] = rate if told else _RATES_GB_S.get(version or 0)
    lanes = dict(direct)
    for b in switched:
        for a in switched:
            if a < b:
                lanes.setdefault((a, b), min(switched[a], switched[b]))
    found = {}
    for (a, b), count in lanes.items():
        rate = rates.get(a)
        found[a, b] = DeviceLink(
            a=a,
            b=b,
            kind=LinkKind.NVLINK,
            lanes=count,
            version=versions.get(a),
            gb_s=None if rate is None else rate * count,
        )
    return found


def _peers(nvml: Nvml, handle: Any, numbers: dict[str, int]) -> list[str | None]:
    """The other end of each active link: a PCI address as sysfs writes it, or None for an NVSwitch."""
    found: list[str | None] = []
    for link in range(_MAX_LINKS):
        if nvml.maybe("nvmlDeviceGetNvLinkState", handle, link) != 1:
            continue
        kind = nvml.maybe("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        if kind == _SWITCH:
            found.append(None)
        elif kind in (_GPU, None):  # older drivers and bindings do not tell it
            remote = nvml.maybe("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
            address = pci_address(getattr(remote, "busId", None))
            if address in numbers:
                found.append(address)
    return found


def _version(nvml: Nvml, handle: Any) -> int | None:
    answers = (nvml.maybe("nvmlDeviceGetNvLinkVersion", handle, link) for link in range(_MAX_LINKS))
    return next((_VERSIONS.get(answer) for answer in answers if type(answer) is int and answer), None)


def pci_address(bus_id: Any) -> str | None:
    """NVML's ``00000000:1B:00.0`` as sysfs has it, ``0000:1b:00.0``; None for anything else."""
    text = bus_id.decode(errors="replace") if isinstance(bus_id, bytes) else str(bus_id)
    found = re.fullmatch(r"([0-9a-f]+):([0-9a-f]+:[0-9a-f]+\.[0-9a-f])", text.lower())
    return found and f"{int(found[1], 16):04x}:{found[2]}"
