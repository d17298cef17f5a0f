"""Links as they are given or measured, the patterns that they ask for, and collectives by priority."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from ..links.collectives.handle import Handle
    from ..links.schedule.queue import CollectiveQueue

__all__ = [
    "BandwidthAwareScheduler",
    "NetworkTopologyOptimizer",
    "create_adaptive_scheduler",
    "create_bandwidth_scheduler",
    "create_topology_optimizer",
]

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
        """See :func:`.measure_or_saved`; all ranks call it. A given topology still says who shares a host.

        Raises:
            RuntimeError: there is no process group.
            ValueError: the group has another number of ranks.
        """
        if self.world_size == 1:
            return self.links
        if process_group is None and not in_process_group():
            raise RuntimeError(
                "measuring needs a process group: call torch.distributed.init_process_group first"
            )
        import torch.distributed as dist

        from ..links.saved import measure_or_saved

        size = dist.get_world_size(process_group)
        if size != self.world_size:
            raise ValueError(f"world_size is {self.world_size}, and the process group has {size} ranks")
        found = measure_or_saved(process_group, seconds=seconds)
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
    """An optimizer on this rank. With a number of nodes, or of ranks on each, a topology of them is given.

    Raises:
        ValueError: a number is not positive, or there are more ranks than places.
    """
    rank = 0
    if in_process_group():
        import torch.distributed as dist

        rank = dist.get_rank()
    topology = None
    if node_count is not None or gpus_per_node is not None:
        for name, value in (("node_count", node_count), ("gpus_per_node", gpus_per_node)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        gpus_per_node = gpus_per_node or -(-world_size // (node_count or 1))
        node_count = node_count or -(-world_size // gpus_per_node)
        topology = NetworkTopology(node_count, gpus_per_node)
    return NetworkTopologyOptimizer(world_size, rank, topology)


@dataclass
class _Scheduled:
    operation_id: str
    operation_type: str
    participants: list[int]
    tensor_size: int
    priority: float
    optimization: dict[str, Any]
    handle: Handle[Tensor] | None
    since: float
    done_at: float | None = None
    """When it was first seen to be done."""

    def update(self, now: float) -> None:
        if self.done_at is None and self.handle is not None and self.handle.is_completed():
            self.done_at = now

    @property
    def failed(self) -> bool:
        if self.done_at is None or self.handle is None:
            return False
        try:
            self.handle.wait(0)
        except Exception:  # who has the handle gets it
            return True
        return False


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
        self._queue: CollectiveQueue | None = None
        self._scheduled: list[_Scheduled] = []
        if in_process_group() or topology_optimizer.world_size == 1:
            from ..links.schedule.queue import CollectiveQueue

            _check_size(topology_optimizer.world_size)
            links = topology_optimizer.links
            self._queue = CollectiveQueue(links=None if links.basis == "default" else links)
            group = self._queue.group
            told = difference(group.links.hosts, group.found)
            if told is not None and group.place == 0:
                logger.warning("%s; the topology is believed", told)

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
        operation = operation_of(operation_type)
        optimization = self.topology_optimizer.optimize_communication_pattern(
            operation_type, tensor_size, participants
        )
        before = [
            each.optimization["expected_time_ms"]
            for each in self._active()
            if each.priority >= priority and not set(each.participants).isdisjoint(participants)
        ]
        handle = None
        if tensor is not None:
            if self._queue is None:
                raise RuntimeError(
                    "a tensor needs a process group: call torch.distributed.init_process_group before the "
                    "scheduler is made"
                )
            from ..links.collectives.dense import check

            check(tensor)
            nbytes = tensor.numel() * tensor.element_size()
            if nbytes != tensor_size:
                raise ValueError(f"tensor_size is {tensor_size}, and tensor has {nbytes} bytes")
            handle = self._queue.submit(
                operation, tensor, name=operation_id, participants=participants, priority=priority
            )
        self._scheduled.append(
            _Scheduled(
                operation_id=operation_id,
                operation_type=operation_type,
                participants=list(participants),
                tensor_size=tensor_size,
                priority=priority,
                optimization=optimization,
                handle=handle,
                since=time.monotonic(),
            )
        )
        return {
            "schedule_time_ms": None if None in before else float(sum(before)),
            "optimization": optimization,
            "handle": handle,
        }

    def update_bandwidth_utilization(self, link: tuple[int, int], utilisation: float) -> None:
        """Tell what others use of the link between the hosts of two ranks, from 0 to 1.

        Raises:
            GroupError: the queue is broken or shut down.
            ValueError: as of :meth:`.NetworkTopologyOptimizer.update_congestion_levels`.
        """
        self.topology_optimizer.update_congestion_levels({link: utilisation})
        if self._queue is not None:
            used: dict[int, float] = {}
            for pair, share in self.topology_optimizer.congestion_levels.items():
                for rank in pair:
                    host = self._queue.group.host_of[rank]
                    used[host] = max(used.get(host, 0.0), share)
            self._queue.busy(used)

    def get_active_communications(self) -> list[dict[str, Any]]:
        """What was submitted with a tensor, and is not done."""
        return [
            {
                "operation_id": each.operation_id,
                "operation_type": each.operation_type,
                "participants": each.participants,
                "tensor_size": each.tensor_size,
                "priority": each.priority,
                "expected_time_ms": each.optimization["expected_time_ms"],
                "age_ms": (time.monotonic() - each.since) * 1e3,
            }
            for each in self._active()
        ]

    def get_scheduling_stats(self) -> dict[str, Any]:
        """Numbers of operations that are not cleared (pending: without a tensor), and how busy links are."""
        active = len(self._active())
        done = [each for each in self._scheduled if each.done_at is not None]
        failed = sum(each.failed for each in done)
        levels = list(self.topology_optimizer.congestion_levels.values())
        return {
            "operations": {
                "total_scheduled": len(self._scheduled),
                "pending": len(self._scheduled) - active - len(done),
                "active": active,
                "completed": len(done) - failed,
                "failed": failed,
            },
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
        self._active()
        changed = {}
        for each in self._scheduled:
            if each.done_at is None:
                found = self.topology_optimizer.optimize_communication_pattern(
                    each.operation_type, each.tensor_size, each.participants
                )
                if found != each.optimization:
                    changed[each.operation_id] = each.optimization = found
        return changed

    def clear_completed_operations(self, retention_hours: float = 1.0) -> int:
        """Forget operations that are done, or failed, and were seen to be so many hours ago; how many.

        Those without a tensor are forgotten so many hours after they were scheduled, and not counted.
        """
        self._active()
        now, seconds, total = time.monotonic(), retention_hours * 3600, len(self._scheduled)
        self._scheduled = [
            each for each in self._scheduled if each.handle is not None or now - each.since < seconds
        ]
        plans = total - len(self._scheduled)
        self._scheduled = [
            each for each in self._scheduled if each.done_at is None or now - each.done_at < seconds
        ]
        return total - plans - len(self._scheduled)

    def shutdown(self) -> None:
        """See :meth:`.CollectiveQueue.shutdown`."""
        if self._queue is not None:
            self._queue.shutdown()

    def _active(self) -> list[_Scheduled]:
        now = time.monotonic()
        for each in self._scheduled:
            each.update(now)
        return [each for each in self._scheduled if each.handle is not None and each.done_at is None]


def _check_size(world_size: int) -> None:
    if in_process_group():
        import torch.distributed as dist

        size = dist.get_world_size()
        if size != world_size:
            raise ValueError(f"world_size is {world_size}, and the process group has {size} ranks")


def create_bandwidth_scheduler(
    world_size: int = 8, node_count: int = 4, gpus_per_node: int = 8
) -> BandwidthAwareScheduler:
    """A scheduler on given nodes. In a process group ``world_size`` is its number of ranks."""
    return BandwidthAwareScheduler(create_topology_optimizer(world_size, node_count, gpus_per_node))


def create_adaptive_scheduler() -> BandwidthAwareScheduler:
    """A scheduler of the process group, or of one rank."""
    world_size = 1
    if in_process_group():
        import torch.distributed as dist

        world_size = dist.get_world_size()
    return BandwidthAwareScheduler(create_topology_optimizer(world_size))
