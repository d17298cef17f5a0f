"""Links as they are given or measured, and the pattern and the order that they ask for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..groups import in_process_group
from ..links.advice import advice, operation_of
from ..links.facts import MeasuredLinks
from ..links.methods import CompressionMethod
from ..links.order import RankOrder, rank_order
from ..links.rates import bandwidth_matrix, checked_utilisation, latency_matrix, left
from ..links.topology import (
    NetworkTopology,
    default_topology,
    difference,
    links_of,
    regrouped,
    topology_of,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch.distributed import ProcessGroup

__all__ = ["NetworkTopologyOptimizer", "create_topology_optimizer"]

logger = logging.getLogger(__name__)


class NetworkTopologyOptimizer:
    """What is known of the links between ranks, and what it says of collectives.

    Until :meth:`measure` it is the given topology, or a default one, and answers say so by their ``basis``.
    """

    def __init__(self, world_size: int, rank: int, topology: NetworkTopology | None = None) -> None:
        """``rank`` is this process's; ``topology`` need not be full.

        Raises:
            ValueError: no such rank, or more ranks than the topology has places.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1, got rank {rank} of {world_size}")
        self.world_size, self.rank, self._topology = world_size, rank, topology
        self.discovered_topology = topology or default_topology(world_size)
        self.difference: str | None = None
        """In what way the given topology has other hosts than :meth:`measure` found."""
        self._links = links_of(
            self.discovered_topology, world_size, "default" if topology is None else "given"
        )
        self._utilisation: dict[tuple[int, int], float] = {}

    @property
    def links(self) -> MeasuredLinks:
        """With the rates that :meth:`update_congestion_levels` leaves."""
        return left(self._links, self._utilisation)

    @property
    def bandwidth_matrix(self) -> npt.NDArray[np.float64]:
        """See :func:`.rates.bandwidth_matrix`, of :attr:`links`."""
        return bandwidth_matrix(self.links)

    @property
    def latency_matrix(self) -> npt.NDArray[np.float64]:
        """See :func:`.rates.latency_matrix`."""
        return latency_matrix(self._links)

    @property
    def congestion_levels(self) -> Mapping[tuple[int, int], float]:
        """What :meth:`update_congestion_levels` was told last, by pair of ranks."""
        return dict(self._utilisation)

    def measure(self, process_group: ProcessGroup | None = None, seconds: float = 3.0) -> MeasuredLinks:
        """See :func:`.measure_links`; all ranks call it. A given topology still says who shares a host.

        Raises:
            RuntimeError: there is no process group.
            ValueError: the group has another number of ranks.
        """
        if self.world_size == 1 and process_group is None:
            return self.links
        if process_group is None and not in_process_group():
            raise RuntimeError(
                "measuring needs a process group: call torch.distributed.init_process_group first"
            )
        import torch.distributed as dist

        from ..links.measure import measure_links

        size = dist.get_world_size(process_group)
        if size != self.world_size:
            raise ValueError(f"world_size is {self.world_size}, and the process group has {size} ranks")
        found = measure_links(process_group, seconds=seconds)
        if self._topology is not None:
            hosts = self._topology.hosts(size)
            self.difference = difference(hosts, found.hosts)
            if self.difference is not None:
                logger.warning("%s; the topology is believed", self.difference)
                found = regrouped(found, hosts)
        self._links, self.discovered_topology = found, topology_of(found)
        return self.links

    def optimize_communication_pattern(
        self,
        operation: str,
        tensor_size: int,
        participants: Sequence[int] | None = None,
        *,
        compression: CompressionMethod = CompressionMethod.NONE,
    ) -> dict[str, Any]:
        """See :func:`.advice`, of :attr:`links`."""
        return advice(operation_of(operation), tensor_size, self.links, participants, compression=compression)

    def rank_order(self, traffic: npt.NDArray[np.float64] | None = None) -> RankOrder:
        """See :func:`.rank_order`, of :attr:`links`."""
        return rank_order(self.links, traffic)

    def update_congestion_levels(self, link_utilizations: Mapping[tuple[int, int], float]) -> None:
        """Tell how much of the links between the hosts of pairs of ranks others use, from 0 to 1.

        Of a pair the last that was told counts.

        Raises:
            ValueError: as of :func:`.checked_utilisation`.
        """
        self._utilisation |= checked_utilisation(link_utilizations, self.world_size)

    def get_topology_info(self) -> dict[str, Any]:
        """What is known: the topology, who shares a host, least, greatest and mean figures (None: none)."""
        levels = self._utilisation.values()
        return {
            "discovered_topology": dict(vars(self.discovered_topology)),
            "basis": self._links.basis,
            "hosts": [list(ranks) for ranks in self._links.hosts],
            "difference": self.difference,
            "bandwidth_matrix_stats": _stats(self.bandwidth_matrix, "bandwidth"),
            "latency_matrix_stats": _stats(self.latency_matrix, "latency"),
            "congestion_info": {
                "congested_links": sum(level > 0 for level in levels),
                "max_congestion": max(levels, default=0.0),
            },
        }


def _stats(matrix: npt.NDArray[np.float64], name: str) -> dict[str, float | None]:
    known = matrix[matrix == matrix]
    found = (known.min(), known.max(), known.mean()) if known.size else (None, None, None)
    return {
        f"{kind}_{name}": None if value is None else float(value)
        for kind, value in zip(("min", "max", "avg"), found, strict=True)
    }


def create_topology_optimizer(
    world_size: int, node_count: int | None = None, gpus_per_node: int | None = None
) -> NetworkTopologyOptimizer:
    """An optimizer on this rank. With a number of nodes, or of ranks on each, a topology of them is given."""
    rank = 0
    if in_process_group():
        import torch.distributed as dist

        rank = dist.get_rank()
    topology = None
    if node_count is not None or gpus_per_node is not None:
        gpus_per_node = gpus_per_node or -(-world_size // (node_count or 1))
        node_count = node_count or -(-world_size // gpus_per_node)
        topology = NetworkTopology(node_count, gpus_per_node)
    return NetworkTopologyOptimizer(world_size, rank, topology)
