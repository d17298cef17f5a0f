"""Network interfaces and RDMA devices, from Linux's sysfs (ABI: sysfs-class-net, sysfs-class-infiniband)."""

from __future__ import annotations

from ..facts import NetworkInterface
from ..files import Files, printable

_NET = "sys/class/net"
_RDMA = "sys/class/infiniband"
_ARPHRD_INFINIBAND, _ARPHRD_LOOPBACK = 32, 772  # if_arp.h


def read_network_interfaces(files: Files) -> tuple[NetworkInterface, ...]:
    """Every interface, and each RDMA device that no interface belongs to (InfiniBand without IPoIB)."""
    interfaces = [
        _interface(files, name) for name in files.names(_NET) if files.exists(f"{_NET}/{name}/type")
    ]
    taken = {interface.rdma_device for interface in interfaces}
    adapters = [_adapter(files, name) for name in files.names(_RDMA) if name not in taken]
    return (*interfaces, *adapters)


def _interface(files: Files, name: str) -> NetworkInterface:
    folder = f"{_NET}/{name}"
    hardware = files.number(f"{folder}/type")
    rdma = next(iter(files.names(f"{folder}/device/infiniband")), None)
    speed = files.number(f"{folder}/speed")  # Mbit/s; -1 where the driver does not know
    carrier = files.number(f"{folder}/carrier")
    numa = files.number(f"{folder}/device/numa_node")
    if hardware == _ARPHRD_LOOPBACK:
        kind = "loopback"
    elif hardware == _ARPHRD_INFINIBAND:
        kind = "infiniband"
    elif not files.exists(f"{folder}/device"):
        kind = "virtual"
    else:
        kind = "roce" if rdma else "ethernet"
    return NetworkInterface(
        name=printable(name),
        kind=kind,  # type: ignore[arg-type]
        speed_gbit_s=speed / 1000 if speed is not None and speed > 0 else _rate(files, rdma),
        mtu=files.number(f"{folder}/mtu"),
        driver=files.link_name(f"{folder}/device/driver"),
        carrier=None if carrier is None else carrier == 1,
        numa_node=numa if numa is not None and numa >= 0 else None,
        rdma_device=rdma,
    )


def _adapter(files: Files, name: str) -> NetworkInterface:
    folder = f"{_RDMA}/{name}"
    port = next(iter(files.numbered(f"{folder}/ports", "")), 1)
    numa = files.number(f"{folder}/device/numa_node")
    state = files.text(f"{folder}/ports/{port}/state")  # "4: ACTIVE"
    ethernet = files.text(f"{folder}/ports/{port}/link_layer") == "Ethernet"
    return NetworkInterface(
        name=name,
        kind="roce" if ethernet else "infiniband",
        speed_gbit_s=_rate(files, name),
        driver=files.link_name(f"{folder}/device/driver"),
        carrier=None if state is None else state.startswith("4:"),
        numa_node=numa if numa is not None and numa >= 0 else None,
        rdma_device=name,
    )


def _rate(files: Files, rdma: str | None) -> float | None:
    """``400 Gb/sec (4X NDR)``: an RDMA device's fastest port."""
    if rdma is None:
        return None
    ports = f"{_RDMA}/{rdma}/ports"
    rates = [(files.text(f"{ports}/{port}/rate") or "").split() for port in files.numbered(ports, "")]
    return max((float(rate[0]) for rate in rates if rate[1:2] == ["Gb/sec"]), default=None)
