"""Links as they are given or measured, the patterns that they ask for, and collectives by priority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..links.advice import advice, operation_of
from ..links.facts import MeasuredLinks
from ..links.methods import CompressionMethod
from ..links.order import RankOrder, rank_order
from ..links.place import check_place, need_group, size_and_rank
from ..links.rates import bandwidth_matrix, checked_utilisation, latency_matrix, left
from ..links.schedule.scheduled import Schedule
from ..links.topology import (
    NetworkTopology,
    default_topology,
    links_of,
    regrouped,
    topology_for,
    topology_of,
    warn_of_difference,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor
    from torch.distributed import ProcessGroup

__all__ = [
    "BandwidthAwareScheduler",
    "NetworkTopologyOptimizer",
    "create_adaptive_scheduler",
    "create_bandwidth_scheduler",
    "create_topology_optimizer",
]


class NetworkTopologyOptimizer:
    """What is known of the links between ranks, and what it says of collectives.

    Until :meth:`measure` it is the given topology, or a default one, and answers say so by their ``basis``.
    """

    _utilisation: dict[tuple[int, int], float]
    difference: str | None
    """In what way the given topology has other hosts than :meth:`measure` found."""

    def __init__(self, world_size: int, rank: int, topology: NetworkTopology | None = None) -> None:
        """``rank`` is this process's; ``topology`` need not be full.

        Raises:
            ValueError: no such rank, or more ranks than the topology has places.
        """
        self.world_size, self.rank, self._topology = world_size, _checked(rank, world_size), topology
        self.discovered_topology = topology or default_topology(world_size)
        self._links = links_of(self.discovered_topology, world_size, "given" if topology else "default")
        self._utilisation, self.difference = {}, None

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
        """See :func:`.measure_or_saved`; all ranks call it. A given topology still says who shares a host.

        Raises:
            RuntimeError: there is no process group.
            ValueError: the group has another number of ranks.
        """
        need_group(self.world_size, "measuring", process_group)
        check_place(self.world_size, process_group=process_group)
        if self.world_size > 1:
            from ..links.saved import measure_or_saved

            self._measured(measure_or_saved(process_group, seconds=seconds))
        return self.links

    def _measured(self, found: MeasuredLinks) -> None:
        hosts = found.hosts if self._topology is None else self._topology.hosts(self.world_size)
        self.difference = warn_of_difference(hosts, found.hosts)
        self._links = regrouped(found, hosts)
        self.discovered_topology = topology_of(self._links)

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


def _checked(rank: int, world_size: int) -> int:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got rank {rank} of {world_size}")
    return rank


def create_topology_optimizer(
    world_size: int, node_count: int | None = None, gpus_per_node: int | None = None
) -> NetworkTopologyOptimizer:
    """An optimizer on this rank. With a number of nodes, or of ranks on each, a topology of them is given.

    Raises:
        ValueError: a number is not positive, or there are more ranks than places.
    """
    topology = topology_for(world_size, node_count, gpus_per_node)
    return NetworkTopologyOptimizer(world_size, size_and_rank()[1], topology)


class BandwidthAwareScheduler:
    """Collectives by priority, on a :class:`.CollectiveQueue` of the process group, if there is one.

    All ranks make it together. Without a tensor it only says what to expect.
    """

    def __init__(self, topology_optimizer: NetworkTopologyOptimizer) -> None:
        """See :class:`.CollectiveQueue`.

        Hosts are those of the optimizer's topology, given or measured before this; else they are found.

        Raises:
            GroupError: the ranks disagree, or one did not answer.
            ValueError: the process group has another number of ranks than the optimizer.
        """
        self.topology_optimizer = topology_optimizer
        self._schedule = Schedule(
            topology_optimizer.world_size,
            topology_optimizer.links,
            topology_optimizer.optimize_communication_pattern,
        )

    def schedule_communication(
        self,
        operation_id: str,
        operation_type: str,
        participants: Sequence[int],
        tensor_size: int,
        priority: float = 1.0,
        tensor: Tensor | None = None,
    ) -> dict[str, Any]:
        """Have a collective carried out, as :meth:`.CollectiveQueue.submit`, or only say what to expect.

        Args:
            operation_id: the same on all participants.
            operation_type: all_reduce, all_gather, reduce_scatter or all_to_all.
            participants: ranks.
            tensor_size: bytes of the tensor that each gives.
            priority: the higher, the more urgent.
            tensor: this rank's; default: nothing is sent.

        Returns:
            ``schedule_time_ms``: what is expected to go before it (None: not known); ``optimization``, of
            :meth:`.NetworkTopologyOptimizer.optimize_communication_pattern`; ``handle``, None without a
            tensor.

        Raises:
            GroupError: the queue is broken or shut down.
            RuntimeError: a tensor, and no process group.
            TypeError: as there.
            ValueError: as there, or ``tensor`` has another size.
        """
        return self._schedule.submit(
            operation_id, operation_type, participants, tensor_size, priority, tensor
        )

    def update_bandwidth_utilization(self, link: tuple[int, int], utilisation: float) -> None:
        """Tell what others use of the link between the hosts of two ranks, from 0 to 1.

        Raises:
            GroupError: the queue is broken or shut down.
            ValueError: as of :meth:`.NetworkTopologyOptimizer.update_congestion_levels`.
        """
        self.topology_optimizer.update_congestion_levels({link: utilisation})
        self._schedule.busy(self.topology_optimizer.congestion_levels)

    def get_active_communications(self) -> list[dict[str, Any]]:
        """What was submitted with a tensor, and is not done."""
        return self._schedule.active()

    def get_scheduling_stats(self) -> dict[str, Any]:
        """Numbers of operations that are not cleared (pending: without a tensor), and how busy links are."""
        levels = list(self.topology_optimizer.congestion_levels.values())
        return {
            "operations": self._schedule.counts(),
            "bandwidth_utilization": {
                "average": sum(levels) / len(levels) if levels else 0.0,
                "peak": max(levels, default=0.0),
                "utilized_links": len(levels),
            },
        }

    def optimize_pending_operations(self) -> dict[str, dict[str, Any]]:
        """Ask anew what is best for operations that are not done, as links are now used.

        Which goes next, and by which pattern, is decided for each chunk anyway.

        Returns:
            By id, the ``optimization`` of those for which it has changed.
        """
        return self._schedule.advised_anew()

    def clear_completed_operations(self, retention_hours: float = 1.0) -> int:
        """Forget operations that are done, or failed, and were seen to be so many hours ago; how many.

        Those without a tensor are forgotten so many hours after they were scheduled, and not counted.
        """
        return self._schedule.forget(retention_hours)

    def shutdown(self) -> None:
        """See :meth:`.CollectiveQueue.shutdown`."""
        self._schedule.shutdown()


def create_bandwidth_scheduler(
    world_size: int = 8, node_count: int = 4, gpus_per_node: int = 8
) -> BandwidthAwareScheduler:
    """A scheduler on given nodes. In a process group ``world_size`` is its number of ranks."""
    return BandwidthAwareScheduler(create_topology_optimizer(world_size, node_count, gpus_per_node))


def create_adaptive_scheduler() -> BandwidthAwareScheduler:
    """A scheduler of the process group, or of one rank."""
    return BandwidthAwareScheduler(create_topology_optimizer(size_and_rank()[0]))
