"""One topology of all processes of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from ..groups import tell_all
from .facts import ClusterTopology, DeviceInfo, GpuIdentity, NodeTopology, RankPlace

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What a rank tells the others: the node it sees, and the GPU that it computes on if it has one."""

    node: NodeTopology
    gpu: GpuIdentity | None = None


def gather_topology(
    read: Callable[[], NodeTopology], process_group: ProcessGroup | None = None
) -> ClusterTopology:
    """Every rank's node in one topology, the same on all ranks.

    Args:
        read: what this rank sees of its machine.
        process_group: whose ranks are gathered; default: all.

    Raises:
        GroupError: as of :func:`.groups.tell_all`.
    """
    from .torch_devices import own_gpu

    answers = tell_all(
        lambda: msgspec.json.encode(RankReport(node=read(), gpu=own_gpu())),
        process_group,
        what="read its machine",
    )
    return merge_reports([msgspec.json.decode(answer, type=RankReport) for answer in answers])


def merge_reports(reports: Sequence[RankReport]) -> ClusterTopology:
    """The topology of the ranks that report, in order of rank.

    Ranks are on one host if their boot id and network namespace are the same, whatever it is called; a rank
    that cannot tell them is a host of its own. Nodes and devices are numbered in order of their first rank.
    """
    hosts: dict[object, list[int]] = {}
    for rank, report in enumerate(reports):
        boot, namespace = report.node.boot_id, report.node.network_namespace
        key = (boot, namespace) if boot and namespace else rank
        hosts.setdefault(key, []).append(rank)
    nodes: dict[int, NodeTopology] = {}
    places: dict[int, RankPlace] = {}
    first = 0
    for node_id, ranks in enumerate(hosts.values()):
        node = _numbered(_shared([reports[rank] for rank in ranks]), node_id, first)
        nodes[node_id] = node
        for local_rank, rank in enumerate(ranks):
            device = _device_of(node, reports[rank].gpu, local_rank, len(ranks))
            places[rank] = RankPlace(rank=rank, node_id=node_id, local_rank=local_rank, device_id=device)
        first += len(node.devices)
    return ClusterTopology(nodes=nodes, ranks=tuple(places[rank] for rank in range(len(reports))))


def _shared(reports: Sequence[RankReport]) -> NodeTopology:
    """The node as its first rank sees it, with the CPUs and the devices that any of its ranks may use."""
    first = reports[0].node
    cpus = {cpu for report in reports for cpu in report.node.limits.cpus}
    devices = []
    for device in first.devices:
        for report in reports:
            computes = report.gpu is not None and report.gpu.is_of(device)
            for other in report.node.devices:
                if _is_same(other, device) and (computes or other.hidden is None):
                    device = replace(other, hidden=None)
        devices.append(device)
    limits = replace(first.limits, cpus=tuple(sorted(cpus)))
    return replace(first, limits=limits, devices=tuple(devices))


def _is_same(a: DeviceInfo, b: DeviceInfo) -> bool:
    return (a.device_id, a.uuid, a.pci_slot) == (b.device_id, b.uuid, b.pci_slot)


def _numbered(node: NodeTopology, node_id: int, first: int) -> NodeTopology:
    devices = tuple(replace(device, device_id=first + device.device_id) for device in node.devices)
    links = tuple(replace(link, a=first + link.a, b=first + link.b) for link in node.links)
    return replace(node, node_id=node_id, devices=devices, links=links)


def _device_of(node: NodeTopology, gpu: GpuIdentity | None, local_rank: int, local_size: int) -> int | None:
    """The rank's GPU, else the CPU package in its turn if there is one for each."""
    for device in node.devices:
        if gpu is not None and gpu.is_of(device):
            return device.device_id
    packages = [device.device_id for device in node.devices if device.kind == "cpu"]
    return packages[local_rank] if local_size <= len(packages) else None
