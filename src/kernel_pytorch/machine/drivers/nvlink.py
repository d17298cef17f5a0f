"""Which GPUs NVLink joins, through NVML."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..facts import DeviceLink, LinkKind
from .nvml import Nvml

# NVML numbers the versions 1.0, 2.0, 2.2, 3.0, 3.1, 4.0, 5.0, 6.0 (nvmlNvlinkVersion_t).
_VERSIONS = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 5, 8: 6}
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
        peers = _peers(nvml, handle)
        for peer in peers:
            if peer is not None and numbers.get(peer, -1) > index:
                direct[index, numbers[peer]] += 1
        if None in peers:
            switched[index] = peers.count(None)
        if peers:
            version = _version(nvml, handle)
            speed = nvml.field(handle, nvml.api.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON)
            versions[index] = version
            rates[index] = speed / 1e3 if speed else _RATES_GB_S.get(version or 0)
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


def _peers(nvml: Nvml, handle: Any) -> list[str | None]:
    """The other end of each active link: a PCI address as sysfs writes it, or None for an NVSwitch."""
    found: list[str | None] = []
    for link in range(nvml.api.NVML_NVLINK_MAX_LINKS):
        if nvml.maybe("nvmlDeviceGetNvLinkState", handle, link) != 1:
            continue
        kind = nvml.maybe("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        if kind == nvml.api.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            found.append(None)
        elif kind == nvml.api.NVML_NVLINK_DEVICE_TYPE_GPU:
            remote = nvml.maybe("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
            if remote is not None:
                found.append(pci_address(remote.busId))
    return found


def _version(nvml: Nvml, handle: Any) -> int | None:
    answers = (
        nvml.maybe("nvmlDeviceGetNvLinkVersion", handle, link)
        for link in range(nvml.api.NVML_NVLINK_MAX_LINKS)
    )
    return next((_VERSIONS.get(answer) for answer in answers if answer), None)


def pci_address(bus_id: bytes | str) -> str:
    """NVML's ``00000000:1B:00.0`` as sysfs has it, ``0000:1b:00.0``."""
    domain, _, rest = (bus_id.decode() if isinstance(bus_id, bytes) else bus_id).partition(":")
    return f"{int(domain, 16):04x}:{rest.lower()}"
