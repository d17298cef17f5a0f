"""How to start the ranks of a placement so that each computes on its device, with the CPUs next to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..machine.facts import ClusterTopology, DeviceInfo, HardwareVendor, NodeTopology
from ..machine.files import format_cpu_list
from . import Placement


@dataclass(frozen=True, kw_only=True)
class LocalRank:
    """A rank of a node, with its device and CPUs."""

    local_rank: int
    device: DeviceInfo
    cpus: tuple[int, ...]
    """CPUs next to the device that this process may use; empty if none are known."""


@dataclass(frozen=True, kw_only=True)
class NodeLaunch:
    """What to start on a node."""

    node_id: int
    hostname: str
    environment: dict[str, str]
    """Variables that give local rank i the i-th device."""
    numa_binding: str | None
    """For torchrun's --numa-binding (PyTorch 2.9, with numactl installed)."""
    why: str
    """The reason for numa_binding."""
    ranks: tuple[LocalRank, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchHints:
    """How to start the ranks of a placement on each node."""

    nodes: tuple[NodeLaunch, ...]
    """In the order of their node ranks."""
    in_order: bool
    """Whether rank r is the r-th of the mesh. If not, the mesh alternates between nodes, or Intel's GPUs
    cannot be started in its order."""

    def __str__(self) -> str:
        """For people: a command line for each node, and the CPUs of each rank."""
        lines = []
        for node_rank, node in enumerate(self.nodes):
            words = [f"{name}={value}" for name, value in node.environment.items()]
            words += ["torchrun", f"--nproc-per-node={len(node.ranks)}"]
            if len(self.nodes) > 1:
                words += [f"--nnodes={len(self.nodes)}", f"--node-rank={node_rank}"]
            if node.numa_binding:
                words.append(f"--numa-binding={node.numa_binding}")
            lines.append(f"{node.hostname}: {' '.join(words)} ...")
            lines.append(f"  NUMA binding: {node.why}")
            for rank in node.ranks:
                numa = rank.device.numa_node
                where = "NUMA node unknown" if numa is None else f"NUMA node {numa}"
                cpus = f"CPUs {format_cpu_list(rank.cpus)}" if rank.cpus else "no CPUs known next to it"
                lines.append(f"  local rank {rank.local_rank}: {rank.device.label}, {where}, {cpus}")
        if not self.in_order:
            lines.append("The ranks are not in the order of the mesh.")
        return "\n".join(lines)


def launch_hints(topology: ClusterTopology, placement: Placement) -> LaunchHints:
    """How to start a placement with torchrun, which gives a node's ranks the devices 0, 1, ... that they see.

    Nodes, and the devices of a node, are ranked by their first appearance in the mesh.
    """
    devices = {device.device_id: device for device in topology.devices}
    by_node: dict[int, list[DeviceInfo]] = {}
    for device_id in placement.device_ids:
        by_node.setdefault(topology.node_of(device_id).node_id, []).append(devices[device_id])
    for own in by_node.values():
        if own[0].vendor is HardwareVendor.INTEL:  # Level Zero ignores the order of the mask
            own.sort(key=lambda device: device.index)
    started = [device.device_id for own in by_node.values() for device in own]
    return LaunchHints(
        nodes=tuple(_node_launch(topology.nodes[node_id], own) for node_id, own in by_node.items()),
        in_order=tuple(started) == placement.device_ids,
    )


def _node_launch(node: NodeTopology, devices: Sequence[DeviceInfo]) -> NodeLaunch:
    ranks = tuple(
        LocalRank(local_rank=i, device=device, cpus=_near_cpus(node, device))
        for i, device in enumerate(devices)
    )
    binding, why = _numa_binding(node, ranks)
    return NodeLaunch(
        node_id=node.node_id,
        hostname=node.hostname,
        environment=_visible(devices),
        numa_binding=binding,
        why=why,
        ranks=ranks,
    )


def _near_cpus(node: NodeTopology, device: DeviceInfo) -> tuple[int, ...]:
    near = set(device.cpus)
    for numa in node.numa_nodes:
        if device.kind == "gpu" and numa.numa_id == device.numa_node:
            near = set(numa.cpus)
    return tuple(sorted(near & set(node.limits.cpus)))


def _numa_binding(node: NodeTopology, ranks: Sequence[LocalRank]) -> tuple[str | None, str]:
    """torchrun's mode "node" gives a rank the CPUs of its GPU's NUMA node; none where it would fail or harm.

    The other modes do not suit every machine: "exclusive" divides these CPUs among the GPUs next to them and
    fails where there are fewer cores than GPUs, "socket" fails if a NUMA node has no CPUs, and "core-complex"
    leaves most cores idle where GPUs are few.
    """
    if any(rank.device.kind != "gpu" or rank.device.vendor is HardwareVendor.INTEL for rank in ranks):
        return None, "none, torchrun binds by the GPUs that torch.cuda knows; use the CPUs below with taskset"
    if len(node.numa_nodes) < 2:
        return None, "none, there is one NUMA node"
    unknown = [rank.device.label for rank in ranks if rank.device.numa_node is None]
    if unknown:
        return None, f"none, the NUMA node of {', '.join(unknown)} is unknown and torchrun would take node 0"
    barred = [rank.device.label for rank in ranks if not rank.cpus]
    if barred:
        return None, f"none, this process may run on no CPU next to {', '.join(barred)}"
    return "node", "node, each rank on the CPUs next to its GPU"


def _visible(devices: Sequence[DeviceInfo]) -> dict[str, str]:
    """The variable that chooses and orders the GPUs that a process sees, in the form in which it is set here.

    Without such a variable, indexes of NVIDIA GPUs are NVML's: CUDA_DEVICE_ORDER makes CUDA use the same.
    """
    gpus = [device for device in devices if device.kind == "gpu"]
    if not gpus:
        return {}
    variables = {HardwareVendor.AMD: "HIP_VISIBLE_DEVICES", HardwareVendor.INTEL: "ZE_AFFINITY_MASK"}
    variable = variables.get(gpus[0].vendor, "CUDA_VISIBLE_DEVICES")
    entries = {variable: ",".join(map(_entry, gpus))}
    numbered = any(gpu.visible_as is None and not gpu.mig_enabled for gpu in gpus)
    if numbered and variable == "CUDA_VISIBLE_DEVICES":
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **entries}
    return entries


def _entry(gpu: DeviceInfo) -> str:
    if gpu.best_instance is not None and not (gpu.visible_as or "").startswith("MIG-"):
        return gpu.best_instance.uuid
    return gpu.visible_as or str(gpu.index)
