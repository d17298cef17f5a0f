"""Machines written down by hand, for tests that need a GPU or eight without having one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations

from kernel_pytorch.machine.facts import (
    ClusterTopology,
    CpuPackage,
    DeviceInfo,
    DeviceLink,
    HardwareVendor,
    Limits,
    LinkKind,
    MigInstance,
    NetworkInterface,
    NodeTopology,
    NumaNode,
    PciLink,
    Peaks,
    RankPlace,
)

GIB = 1 << 30
H100_PEAKS = Peaks(
    flops={"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12},
    memory_gb_s=3350.0,
    source="NVIDIA H100 Tensor Core GPU data sheet, SXM, without sparsity",
)


def gpu(device_id: int, *, numa_node: int | None = 0, **facts: object) -> DeviceInfo:
    """An H100 but for what is given."""
    found: dict[str, object] = {
        "kind": "gpu",
        "index": device_id,
        "vendor": HardwareVendor.NVIDIA,
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": f"GPU-{device_id:08x}",
        "architecture": "9.0",
        "memory_bytes": 81559 << 20,
        "compute_units": 132,
        "power_limit_w": 700.0,
        "mig_enabled": False,
        "peaks": H100_PEAKS,
    }
    return DeviceInfo(device_id=device_id, numa_node=numa_node, **(found | facts))  # type: ignore[arg-type]


def node(
    devices: Iterable[DeviceInfo],
    *,
    node_id: int = 0,
    links: Iterable[DeviceLink] = (),
    cpus: Sequence[tuple[int, ...]] = ((0, 1), (2, 3)),
    memory_bytes: int = 512 * GIB,
    interfaces: Iterable[NetworkInterface] = (),
    allowed: tuple[int, ...] | None = None,
) -> NodeTopology:
    """A node whose NUMA nodes, a socket each, have ``cpus``."""
    numa_nodes = tuple(
        NumaNode(
            numa_id=number,
            cpus=own,
            memory_bytes=memory_bytes // len(cpus),
            distances=tuple(10 if other == number else 21 for other in range(len(cpus))),
        )
        for number, own in enumerate(cpus)
    )
    packages = tuple(
        CpuPackage(
            package_id=number,
            model="Xeon",
            vendor=HardwareVendor.INTEL,
            cores=tuple((cpu,) for cpu in own),
        )
        for number, own in enumerate(cpus)
    )
    every = tuple(sorted(cpu for own in cpus for cpu in own))
    return NodeTopology(
        node_id=node_id,
        hostname=f"host-{node_id}",
        boot_id=f"boot-{node_id}",
        network_namespace="4026531840",
        packages=packages,
        caches=(),
        numa_nodes=numa_nodes,
        memory_bytes=memory_bytes,
        limits=Limits(cpus=every if allowed is None else allowed, cpu_quota=None, memory_bytes=None),
        devices=tuple(
            device
            if device.cpus or device.numa_node is None
            else replace(device, cpus=numa_nodes[device.numa_node].cpus)
            for device in devices
        ),
        links=tuple(links),
        network_interfaces=tuple(interfaces),
    )


def cluster(*nodes: NodeTopology, ranks: bool = False) -> ClusterTopology:
    """The nodes; with ``ranks``, a rank on each device, in order."""
    places: list[RankPlace] = []
    for found in nodes if ranks else ():
        for local_rank, device in enumerate(found.devices):
            places.append(
                RankPlace(
                    rank=len(places),
                    node_id=found.node_id,
                    local_rank=local_rank,
                    device_id=device.device_id,
                )
            )
    return ClusterTopology(nodes={found.node_id: found for found in nodes}, ranks=tuple(places))


def nvlink(a: int, b: int, lanes: int = 18, gb_s: float | None = 450.0) -> DeviceLink:
    return DeviceLink(a=a, b=b, kind=LinkKind.NVLINK, lanes=lanes, version=4, gb_s=gb_s)


def infiniband(speeds_gbit_s: Iterable[float | None], numa_nodes: Iterable[int]) -> list[NetworkInterface]:
    return [
        NetworkInterface(
            name=f"ib{number}",
            kind="infiniband",
            speed_gbit_s=speed,
            mtu=4092,
            driver="mlx5_core",
            carrier=True,
            numa_node=numa,
            rdma_device=f"mlx5_{number}",
        )
        for number, (speed, numa) in enumerate(zip(speeds_gbit_s, numa_nodes, strict=True))
    ]


def dgx_h100_node(node_id: int = 0, first: int = 0) -> NodeTopology:
    """NVIDIA DGX H100: 8 H100 SXM that meet in NVSwitches with 18 NVLinks each (25 GB/s in a direction); GPUs
    0-3 and four of the eight 400 Gbit/s ConnectX-7 at the first of two 56-core Xeon 8480C.

    Source: NVIDIA DGX H100/H200 User Guide, "Introduction", with the table "Network Modules" for the sockets.
    """
    buses = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")
    devices = [
        gpu(
            first + index,
            index=index,
            numa_node=index // 4,
            pci=PciLink(address=f"0000:{bus}:00.0", generation=5, generation_max=5, width=16, width_max=16),
        )
        for index, bus in enumerate(buses)
    ]
    return node(
        devices,
        node_id=node_id,
        links=[nvlink(a, b) for a, b in combinations(range(first, first + 8), 2)],
        cpus=((*range(56), *range(112, 168)), (*range(56, 112), *range(168, 224))),
        memory_bytes=2048 * GIB,
        interfaces=infiniband([400.0] * 8, [0] * 4 + [1] * 4),
    )


def dgx_h100(nodes: int = 1) -> ClusterTopology:
    return cluster(*(dgx_h100_node(number, 8 * number) for number in range(nodes)), ranks=True)


def eight_pcie() -> ClusterTopology:
    """Eight GPUs without NVLink: four at each of two sockets, in pairs behind a PCIe switch."""

    def kind(a: int, b: int) -> LinkKind:
        if a // 2 == b // 2:
            return LinkKind.PCIE_SWITCH
        return LinkKind.HOST_BRIDGE if a // 4 == b // 4 else LinkKind.SOCKET

    return cluster(
        node(
            [gpu(i, numa_node=i // 4, name="NVIDIA H100 PCIe") for i in range(8)],
            links=[DeviceLink(a=a, b=b, kind=kind(a, b)) for a, b in combinations(range(8), 2)],
        ),
        ranks=True,
    )


def uneven_sockets() -> ClusterTopology:
    """Six GPUs at one socket, two at the other; NVLink bridges between 0-3 and 1-6 alone."""
    devices = [gpu(i, numa_node=0 if i < 6 else 1) for i in range(8)]
    return cluster(node(devices, links=[nvlink(0, 3, 4, 100.0), nvlink(1, 6, 4, 100.0)]), ranks=True)


def mig() -> ClusterTopology:
    """Three H100: one cut into seven 1g.10gb, one in MIG mode without instances, one whole."""
    instances = tuple(
        MigInstance(uuid=f"MIG-{i}", name="1g.10gb", memory_bytes=9984 << 20, compute_units=16)
        for i in range(7)
    )
    devices = [
        gpu(0, mig_enabled=True, mig_instances=instances),
        gpu(1, mig_enabled=True),
        gpu(2),
    ]
    return cluster(node(devices, links=[nvlink(a, b) for a, b in combinations(range(3), 2)]), ranks=True)


def uneven_nodes(sizes: Sequence[int], speeds_gbit_s: Sequence[float | None]) -> ClusterTopology:
    """Nodes of so many GPUs, all joined by NVLink inside, with one network interface of that speed each."""
    nodes, first = [], 0
    for number, (size, speed) in enumerate(zip(sizes, speeds_gbit_s, strict=True)):
        ids = range(first, first + size)
        nodes.append(
            node(
                [gpu(i, index=i - first) for i in ids],
                node_id=number,
                links=[nvlink(a, b) for a, b in combinations(ids, 2)],
                interfaces=infiniband([speed], [0]),
            )
        )
        first += size
    return cluster(*nodes, ranks=True)


def cpu_only(packages: int = 2, ranks_per_package: int = 0) -> ClusterTopology:
    """A machine without accelerators; with ranks, none has a package of its own."""
    cpus = [tuple(range(4 * i, 4 * i + 4)) for i in range(packages)]
    devices = [
        DeviceInfo(
            device_id=i,
            kind="cpu",
            index=i,
            vendor=HardwareVendor.INTEL,
            name="Xeon",
            memory_bytes=64 * GIB,
            compute_units=4,
            numa_node=i,
            cpus=cpus[i],
        )
        for i in range(packages)
    ]
    ranks = tuple(
        RankPlace(rank=rank, node_id=0, local_rank=rank, device_id=None)
        for rank in range(packages * ranks_per_package)
    )
    return ClusterTopology(nodes={0: node(devices, cpus=cpus)}, ranks=ranks)


EVERY: dict[str, Callable[[], ClusterTopology]] = {
    "dgx_h100": dgx_h100,
    "two_dgx_h100": lambda: dgx_h100(2),
    "eight_pcie": eight_pcie,
    "uneven_sockets": uneven_sockets,
    "two_uneven_nodes": lambda: uneven_nodes([4, 2], [100.0, 25.0]),
    "three_uneven_nodes": lambda: uneven_nodes([5, 3, 8], [200.0, None, 400.0]),
    "cpu_only": cpu_only,
}
