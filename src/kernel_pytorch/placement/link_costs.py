"""Links between devices, compared by speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ..machine.facts import ClusterTopology, DeviceInfo, LinkKind, NodeTopology

Strength = tuple[int, float]


@dataclass(frozen=True, kw_only=True)
class PairLink:
    """What joins two devices."""

    kind: LinkKind | None
    """None: the network between two nodes."""
    gb_s: float | None = None
    """GB/s in one direction; between nodes, of the slower node's fastest interface."""
    derived: str | None = None
    """What the kind was derived from, where the topology has no link between the two."""
    assumed: bool = False
    """The worst case was assumed, nothing being known."""

    @property
    def name(self) -> str:
        """``nvlink``, ``pcie_switch``, ``host_bridge``, ``socket`` or ``network``."""
        return "network" if self.kind is None else self.kind.name.lower()

    @property
    def text(self) -> str:
        rate = "" if self.gb_s is None else f" at {self.gb_s:g} GB/s"
        return self.name.replace("_", " ") + rate + (f" ({self.derived})" if self.derived else "")


class LinkTable:
    """The links between some devices of a topology.

    Links are compared by kind (NVLink before PCIe switch, host bridge, socket and network), links of one kind
    by rate; an unknown rate is slower than any known one. Measured rates are used instead, rounded to
    two digits: the rest is noise.

    Args:
        topology: has the devices.
        device_ids: the devices; an index below is a position in this list.
        measured_gb_s: rates by pair of device ids, in either order; of both orders, the slower is used.

    Raises:
        ValueError: a pair was not measured, or its rate is not positive.
    """

    def __init__(
        self,
        topology: ClusterTopology,
        device_ids: Sequence[int],
        measured_gb_s: Mapping[tuple[int, int], float] | None = None,
    ) -> None:
        self.device_ids = tuple(device_ids)
        homes = {device.device_id: node for node in topology.nodes.values() for device in node.devices}
        devices = {device.device_id: device for device in topology.devices}
        self.node_ids = tuple(homes[id].node_id for id in self.device_ids)
        self._links = {
            (link.a, link.b): PairLink(kind=link.kind, gb_s=link.gb_s)
            for node in topology.nodes.values()
            for link in node.links
        }
        self._devices, self._measured = devices, measured_gb_s
        self._networks = {
            (a, b): _network(topology.nodes[a], topology.nodes[b])
            for a, b in combinations(sorted(set(self.node_ids)), 2)
        }
        self.levels = self._levels()
        """[n, n], by index: rank of each pair's link, from 0, the higher the faster. Ignore the diagonal."""

    def between(self, i: int, j: int) -> PairLink:
        """The link of two devices, by index."""
        (a, node_a), (b, node_b) = sorted(
            ((self.device_ids[i], self.node_ids[i]), (self.device_ids[j], self.node_ids[j]))
        )
        if node_a != node_b:
            found = self._networks[min(node_a, node_b), max(node_a, node_b)]
        else:
            found = self._links.get((a, b)) or _derived(self._devices[a], self._devices[b])
        if self._measured is None:
            return found
        return PairLink(kind=found.kind, gb_s=self._rate(a, b), derived=found.derived)

    def _rate(self, a: int, b: int) -> float:
        assert self._measured is not None
        rates = [self._measured[pair] for pair in ((a, b), (b, a)) if pair in self._measured]
        if not rates:
            raise ValueError(f"measured_gb_s must have each pair of {self.device_ids}, got none for {(a, b)}")
        if not min(rates) > 0:
            raise ValueError(f"measured_gb_s must be positive, got {min(rates)} for {(a, b)}")
        return min(rates)

    def _levels(self) -> npt.NDArray[np.int64]:
        size, nodes = len(self.device_ids), np.array(self.node_ids, np.int64)
        blocks: dict[tuple[int, int], Strength] = {}
        if self._measured is None:
            blocks = {pair: self.strength(link) for pair, link in self._networks.items()}
        pairs = {
            (i, j): self.strength(self.between(i, j))
            for i, j in combinations(range(size), 2)
            if self._measured is not None or self.node_ids[i] == self.node_ids[j]
        }
        order = {
            strength: level for level, strength in enumerate(sorted({*blocks.values(), *pairs.values()}))
        }
        levels = np.zeros((size, size), np.int64)
        for (a, b), strength in blocks.items():
            levels[np.ix_(nodes == a, nodes == b)] = levels[np.ix_(nodes == b, nodes == a)] = order[strength]
        for (i, j), strength in pairs.items():
            levels[i, j] = levels[j, i] = order[strength]
        return levels

    def strength(self, link: PairLink) -> Strength:
        """The higher the faster. Comparable with another table's if both have measured rates, or neither."""
        if self._measured is not None:
            return (0, float(f"{link.gb_s:.1e}"))
        distance = len(LinkKind) if link.kind is None else int(link.kind)
        return (-distance, -1.0 if link.gb_s is None else link.gb_s)


def _derived(a: DeviceInfo, b: DeviceInfo) -> PairLink:
    if a.numa_node is None or b.numa_node is None:
        return PairLink(kind=LinkKind.SOCKET, derived="assumed, their NUMA nodes being unknown", assumed=True)
    if a.numa_node == b.numa_node:
        return PairLink(kind=LinkKind.HOST_BRIDGE, derived="from their one NUMA node")
    return PairLink(kind=LinkKind.SOCKET, derived="from their two NUMA nodes")


def _network(a: NodeTopology, b: NodeTopology) -> PairLink:
    speeds = [_fastest_gb_s(a), _fastest_gb_s(b)]
    known = [speed for speed in speeds if speed is not None]
    return PairLink(kind=None, gb_s=min(known) if len(known) == 2 else None)


def _fastest_gb_s(node: NodeTopology) -> float | None:
    """The rate of the fastest interface that is up. Virtual ones are ignored: they have no real speed."""
    return max(
        (
            interface.speed_gbit_s / 8
            for interface in node.network_interfaces
            if interface.kind not in ("loopback", "virtual")
            and interface.carrier is not False
            and interface.speed_gbit_s
        ),
        default=None,
    )
