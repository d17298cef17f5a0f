"""One topology of all ranks of a process group."""

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
    """What a rank sends to the others: the node that it sees, and the GPU that it computes on, if any."""

    node: NodeTopology
    gpu: GpuIdentity | None = None


def gather_topology(
    read: Callable[[], NodeTopology], process_group: ProcessGroup | None = None
) -> ClusterTopology:
    """The nodes of all ranks in one topology, the same on every rank.

    Args:
        read: returns the node that this rank sees.
        process_group: the ranks to gather from; default: all.

    Raises:
        GroupError: see :func:`.groups.tell_all`.
    """
    from .torch_devices import own_gpu

    answers = tell_all(
        lambda: msgspec.json.encode(RankReport(node=read(), gpu=own_gpu())),
        process_group,
        what="read its machine",
    )
    return merge_reports([msgspec.json.decode(answer, type=RankReport) for answer in answers])


def merge_reports(reports: Sequence[RankReport]) -> ClusterTopology:
    """The topology of the ranks that sent ``reports``, in order of rank.

    Ranks are on one node if their boot id and network namespace are equal and they see the same devices,
    whatever the hostname: a batch system may show each rank of a host its own GPU, and all call it 0. A rank
    of unknown boot id or namespace counts as a node of its own. Nodes are numbered by their first rank.
    """
    ranks_of: dict[object, list[int]] = {}  # by host
    for rank, report in enumerate(reports):
        boot, namespace = report.node.boot_id, report.node.network_namespace
        seen = tuple(_identity(device) for device in report.node.devices)
        key = (boot, namespace, seen) if boot and namespace else rank
        ranks_of.setdefault(key, []).append(rank)
    nodes: dict[int, NodeTopology] = {}
    found: dict[int, RankPlace] = {}
    offset = 0
    for node_id, ranks in enumerate(ranks_of.values()):
        node = _with_offset(_merged([reports[rank] for rank in ranks]), node_id, offset)
        nodes[node_id] = node
        for local_rank, rank in enumerate(ranks):
            device = _device_of(node, reports[rank].gpu, local_rank, len(ranks))
            found[rank] = RankPlace(rank=rank, node_id=node_id, local_rank=local_rank, device_id=device)
        offset += len(node.devices)
    return ClusterTopology(nodes=nodes, ranks=tuple(found[rank] for rank in range(len(reports))))


def _merged(reports: Sequence[RankReport]) -> NodeTopology:
    """The node as its first rank sees it, with the CPUs and devices that any of its ranks may use."""
    first = reports[0].node
    cpus = {cpu for report in reports for cpu in report.node.limits.cpus}
    devices = []
    for device in first.devices:
        for report in reports:
            computes = report.gpu is not None and report.gpu.is_of(device)
            for other in report.node.devices:
                if _identity(other) == _identity(device) and (computes or other.hidden is None):
                    device = replace(other, hidden=None)
        devices.append(device)
    limits = replace(first.limits, cpus=tuple(sorted(cpus)))
    return replace(first, limits=limits, devices=tuple(devices))


def _identity(device: DeviceInfo) -> tuple[object, ...]:
    return device.device_id, device.uuid, device.pci_slot


def _with_offset(node: NodeTopology, node_id: int, offset: int) -> NodeTopology:
    """The node with its id in the cluster, and ``offset`` added to its device ids."""
    devices = tuple(replace(device, device_id=offset + device.device_id) for device in node.devices)
    links = tuple(replace(link, a=offset + link.a, b=offset + link.b) for link in node.links)
    return replace(node, node_id=node_id, devices=devices, links=links)


def _device_of(node: NodeTopology, gpu: GpuIdentity | None, local_rank: int, local_size: int) -> int | None:
    """The id of the rank's GPU, else of the ``local_rank``-th CPU package if each rank can have one."""
    for device in node.devices:
        if gpu is not None and gpu.is_of(device):
            return device.device_id
    packages = [device.device_id for device in node.devices if device.kind == "cpu"]
    return packages[local_rank] if local_size <= len(packages) else None
