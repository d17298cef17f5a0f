"""A network as its owner describes it, as links; and measured links by the hosts that it says there are."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .facts import Figure, HostLink, Hosts, MeasuredLinks, RankPair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkTopology:
    """Nodes of equal size; rank r is on node ``r // gpus_per_node``. None: not known.

    Raises:
        ValueError: a number is not positive.
    """

    node_count: int
    gpus_per_node: int
    intra_node_bandwidth_gbps: float | None = 600.0
    """Gbit/s between two ranks of a node, in one direction."""
    inter_node_bandwidth_gbps: float | None = 200.0
    """Gbit/s of a node, in one direction."""
    network_latency_us: float | None = 2.0
    """Of a small message, one way; inside a node too."""
    topology_type: str = "fat_tree"
    """For people."""
    rack_count: int | None = None
    nodes_per_rack: int | None = None
    """Node n is in rack ``n // nodes_per_rack``."""
    rack_bandwidth_gbps: float | None = None
    """Gbit/s between two nodes of different racks; default: as between others."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def places(self) -> int:
        """Number of ranks that there is room for."""
        return self.node_count * self.gpus_per_node

    def hosts(self, world_size: int) -> Hosts:
        """The ranks of each node that has any.

        Raises:
            ValueError: there are more ranks than places.
        """
        if world_size > self.places:
            raise ValueError(
                f"world_size {world_size} is more than the {self.places} places of the topology: "
                f"{self.node_count} nodes of {self.gpus_per_node}"
            )
        size = self.gpus_per_node
        return tuple(
            tuple(range(first, min(first + size, world_size))) for first in range(0, world_size, size)
        )


def default_topology(world_size: int) -> NetworkTopology:
    """Nodes of eight, or one that has all ranks."""
    size = min(world_size, 8)
    return NetworkTopology(node_count=-(-world_size // size), gpus_per_node=size)


def topology_for(
    world_size: int, node_count: int | None = None, gpus_per_node: int | None = None
) -> NetworkTopology | None:
    """A topology of so many nodes, or of nodes of so many ranks; None: neither is said.

    Raises:
        ValueError: a number is not positive.
    """
    for name, value in (("node_count", node_count), ("gpus_per_node", gpus_per_node)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if node_count is None and gpus_per_node is None:
        return None
    each = gpus_per_node or -(-world_size // (node_count or 1))
    return NetworkTopology(node_count or -(-world_size // each), each)


def links_of(topology: NetworkTopology, world_size: int, basis: str = "given") -> MeasuredLinks:
    """What a topology says of the links of its first ranks.

    Raises:
        ValueError: there are more ranks than places.
    """
    hosts = topology.hosts(world_size)
    far = topology.rack_bandwidth_gbps or topology.inter_node_bandwidth_gbps
    near, size = topology.inter_node_bandwidth_gbps, topology.nodes_per_rack or len(hosts)
    rates = {
        (a, b): topology.intra_node_bandwidth_gbps if a == b else near if a // size == b // size else far
        for a in range(len(hosts))
        for b in range(len(hosts))
    }
    figures = {rate: _exactly(rate) for rate in set(rates.values()) if rate is not None}
    pairs: tuple[RankPair, ...] = ()
    if topology.network_latency_us is not None:
        trip = _exactly(2 * topology.network_latency_us)
        pairs = tuple(
            RankPair(a=a, b=b, round_trip_us=trip)
            for a in range(world_size)
            for b in range(a + 1, world_size)
        )
    return MeasuredLinks(
        hosts=hosts,
        basis=basis,
        links=tuple(
            HostLink(source=a, target=b, gbit_s=figures[rate])
            for (a, b), rate in rates.items()
            if rate is not None
        ),
        pairs=pairs,
    )


def topology_of(links: MeasuredLinks) -> NetworkTopology:
    """A description of links: medians; which ranks share a host, and whether hosts differ, it cannot say."""
    inside = [link.gbit_s.value for link in links.links if link.source == link.target]
    between = [link.gbit_s.value for link in links.links if link.source != link.target]
    return NetworkTopology(
        node_count=len(links.hosts),
        gpus_per_node=max(map(len, links.hosts)),
        intra_node_bandwidth_gbps=_median(inside),
        inter_node_bandwidth_gbps=_median(between),
        network_latency_us=_median(pair.round_trip_us.value / 2 for pair in links.pairs),
        topology_type=links.basis,
    )


def regrouped(links: MeasuredLinks, hosts: Hosts) -> MeasuredLinks:
    """Links by other hosts than they were found between, as a topology says there are.

    The rate from one to another, or inside one, is the lowest that was measured between the found hosts of
    their ranks; round trips stay.

    Raises:
        ValueError: the hosts are of another number of ranks.
    """
    if hosts == links.hosts:
        return links
    size = sum(map(len, hosts))
    if size != links.size:
        raise ValueError(f"hosts are of {size} ranks, the links of {links.size}")
    known = {(link.source, link.target): link for link in links.links}
    found = []
    for source, senders in enumerate(hosts):
        for target, receivers in enumerate(hosts):
            pairs = {(links.host_of[a], links.host_of[b]) for a in senders for b in receivers if a != b}
            each = [known[pair] for pair in pairs if pair in known]
            if each:
                slowest = min(each, key=lambda link: link.gbit_s.value)
                found.append(replace(slowest, source=source, target=target))
    # How links are shared, racks and names are those of the found hosts.
    return replace(links, hosts=hosts, links=tuple(found), shared=(), racks=(), names=())


def warn_of_difference(said: Hosts, found: Hosts) -> str | None:
    """:func:`difference`, logged as a warning if there is one."""
    differs = difference(said, found)
    if differs is not None:
        logger.warning("%s; the topology is believed", differs)
    return differs


def difference(said: Hosts, found: Hosts) -> str | None:
    """In what way two groupings of the same ranks differ, for people; None: they do not."""
    if sorted(said) == sorted(found):
        return None
    return f"the topology has ranks {_ranks(said)} on nodes of their own, found were {_ranks(found)}"


def _ranks(hosts: Hosts) -> str:
    return " | ".join(" ".join(map(str, ranks)) for ranks in hosts)


def _exactly(value: float) -> Figure:
    """A figure that nobody measured: no interval, no samples."""
    return Figure(value=value, low=value, high=value, samples=0)


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
