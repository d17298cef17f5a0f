"""Network interfaces and RDMA devices, from Linux's sysfs (ABI: sysfs-class-net, sysfs-class-infiniband)."""

from __future__ import annotations

import re
from typing import Literal

from ..facts import NetworkInterface
from ..files import Files, printable

NET = "sys/class/net"
RDMA = "sys/class/infiniband"
_ARPHRD_ETHER, _ARPHRD_INFINIBAND, _ARPHRD_LOOPBACK = 1, 32, 772  # if_arp.h
_UNKNOWN_MBIT_S = 65535  # -1 in 16 bits: what some drivers give if the speed is unknown
_MAX_MBIT_S = 10_000_000  # the fastest links have 1.6 Tbit/s; larger values such as -1 in 32 bits are invalid
_ACTIVE = 4  # ib_verbs.h: IB_PORT_ACTIVE


def read_network_interfaces(files: Files) -> tuple[NetworkInterface, ...]:
    """All interfaces, and the RDMA devices without one (InfiniBand without IPoIB)."""
    interfaces = [_interface(files, name) for name in files.names(NET) if files.exists(f"{NET}/{name}/type")]
    return (*interfaces, *(_adapter(files, name) for name in lone_adapters(files)))


def has_carrier(files: Files, interface: str) -> bool | None:
    """Whether an interface has a carrier; None if unknown."""
    folder = f"{NET}/{interface}"
    if files.text(f"{folder}/operstate") == "down":  # then ``carrier`` may be unreadable
        return False
    return files.flag(f"{folder}/carrier")


def lone_adapters(files: Files) -> list[str]:
    """Names of the RDMA devices without a network interface."""
    taken = {_rdma_device(files, f"{NET}/{name}") for name in files.names(NET)}
    return [name for name in files.names(RDMA) if name not in taken]


def adapter_ports(files: Files, adapter: str) -> dict[int, str]:
    """The folders of an RDMA device's ports, by port number."""
    ports = f"{RDMA}/{adapter}/ports"
    return {number: f"{ports}/{number}" for number in files.numbered(ports, "")}


def adapter_has_carrier(files: Files, adapter: str) -> bool | None:
    """Whether any port of an RDMA device is active; None if none is known to be and one is unknown."""
    texts = [files.text(f"{port}/state") or "" for port in adapter_ports(files, adapter).values()]
    states = {int(text[0]) if re.match("[0-5]:", text) else None for text in texts}  # "4: ACTIVE"
    return True if _ACTIVE in states else None if None in states or not states else False


def _rdma_device(files: Files, folder: str) -> str | None:
    return next(iter(files.names(f"{folder}/device/infiniband")), None)


def _interface(files: Files, name: str) -> NetworkInterface:
    folder = f"{NET}/{name}"
    hardware = files.number(f"{folder}/type")
    rdma = _rdma_device(files, folder)
    speed = files.count(f"{folder}/speed")  # Mbit/s
    if speed is not None and (speed in (0, _UNKNOWN_MBIT_S) or speed > _MAX_MBIT_S):
        speed = None
    kind: Literal["ethernet", "infiniband", "roce", "loopback", "virtual"] | None
    if hardware is None:
        kind = None
    elif hardware == _ARPHRD_LOOPBACK:
        kind = "loopback"
    elif hardware == _ARPHRD_INFINIBAND:
        kind = "infiniband"
    elif not files.exists(f"{folder}/device"):
        kind = "virtual"
    else:
        kind = None if hardware != _ARPHRD_ETHER else "roce" if rdma else "ethernet"
    return NetworkInterface(
        name=printable(name),
        kind=kind,
        speed_gbit_s=_rate(files, _ports_of(files, folder, rdma)) if speed is None else speed / 1000,
        mtu=files.count(f"{folder}/mtu"),
        driver=files.link_name(f"{folder}/device/driver"),
        carrier=has_carrier(files, name),
        numa_node=files.count(f"{folder}/device/numa_node"),
        rdma_device=printable(rdma) if rdma else None,
    )


def _ports_of(files: Files, folder: str, rdma: str | None) -> list[str]:
    """The folder of the RDMA port that an interface uses; empty if unknown.

    ``dev_port`` counts the ports from 0. Old drivers leave it at 0 and set ``dev_id``. Some drivers count all
    ports of an adapter, though each is an RDMA device with one port: then that port is used.
    """
    ports = adapter_ports(files, rdma) if rdma else {}
    index, dev_id = files.count(f"{folder}/dev_port"), files.text(f"{folder}/dev_id") or ""
    if index == 0 and re.fullmatch("0x[0-9a-f]{1,4}", dev_id):
        index = int(dev_id, 16)
    if len(ports) == 1:
        return list(ports.values())
    return [ports[index + 1]] if index is not None and index + 1 in ports else []


def _adapter(files: Files, name: str) -> NetworkInterface:
    folder, ports = f"{RDMA}/{name}", list(adapter_ports(files, name).values())
    layers = {files.text(f"{port}/link_layer") for port in ports}
    return NetworkInterface(
        name=printable(name),
        kind="infiniband" if "InfiniBand" in layers else "roce" if "Ethernet" in layers else None,
        speed_gbit_s=_rate(files, ports),
        driver=files.link_name(f"{folder}/device/driver"),
        carrier=adapter_has_carrier(files, name),
        numa_node=files.count(f"{folder}/device/numa_node"),
        rdma_device=printable(name),
    )


def _rate(files: Files, ports: list[str]) -> float | None:
    """Gbit/s of the fastest port, from texts such as ``400 Gb/sec (4X NDR)``; None if unknown."""
    texts = (files.text(f"{port}/rate") or "" for port in ports)
    rates = [re.match(r"([0-9]{1,5}(?:\.[0-9]{1,3})?) Gb/sec", text) for text in texts]
    return max((float(rate[1]) for rate in rates if rate), default=None)
