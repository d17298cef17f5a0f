"""Collectives by several patterns, chosen from real calls: an adapter of :mod:`kernel_pytorch.links`."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..links.facts import MeasuredLinks
from ..links.methods import CommunicationPattern, CompressionMethod
from ..links.place import check_place, need_group
from ..links.topology import NetworkTopology, difference, links_of, topology_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.nn.parallel import DistributedDataParallel

    from ..links.collectives.collectives import Collectives
    from ..links.collectives.handle import Handle
    from ..links.collectives.settings import Settings
    from ..links.compress.hook_state import HookState

__all__ = [
    "AdvancedCollectiveOps",
    "CollectiveOpConfig",
    "CommunicationMetrics",
    "CommunicationPattern",
    "CompressionMethod",
    "NetworkTopology",
    "create_collective_ops",
    "create_default_topology",
    "register_comm_hook",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class CollectiveOpConfig:
    """How collectives are carried out.

    Raises:
        ValueError: an unknown name, or a number that is not positive.
    """

    pattern: CommunicationPattern = CommunicationPattern.ADAPTIVE
    compression: CompressionMethod = CompressionMethod.NONE
    """Of the sums and means of floats of 32 bits or more. ADAPTIVE: BF16 or nothing, by expected time."""
    chunk_size_mb: float = 64
    """MiB of the largest chunk; the cost model takes smaller ones."""
    overlap_computation: bool = True
    """Whether a chunk is sent while others are summed."""
    use_hierarchical: bool = True
    """Whether ADAPTIVE may choose HIERARCHICAL, and ``hierarchical_allreduce`` uses it."""
    bandwidth_threshold_gbps: float = 100.0
    """Gbit/s. ADAPTIVE compresses nothing where the slowest link between hosts has as much."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", CommunicationPattern(self.pattern))
        object.__setattr__(self, "compression", CompressionMethod(self.compression))
        wrong = [
            name for name in ("chunk_size_mb", "bandwidth_threshold_gbps") if not getattr(self, name) > 0
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} must be positive, got {getattr(self, wrong[0])}")

    def settings(self) -> Settings:
        """For :class:`.Collectives`."""
        from ..links.collectives.settings import Settings

        return Settings(
            pattern=self.pattern,
            compression=self.compression,
            chunk_bytes=max(1, int(self.chunk_size_mb * (1 << 20))),
            overlap=self.overlap_computation,
            hierarchical=self.use_hierarchical,
            compress_below_gbit_s=self.bandwidth_threshold_gbps,
        )


@dataclass(frozen=True)
class CommunicationMetrics:
    """What a call did on this rank. None: not known."""

    operation: str | None = None
    pattern: CommunicationPattern | None = None
    """None: also of an all-to-all, which has none."""
    compression: CompressionMethod = CompressionMethod.NONE
    reason: str | None = None
    """For the pattern and the compression."""
    tensor_bytes: int = 0
    """Of the whole vector: of an all-gather its output, of a reduce-scatter its input."""
    total_bytes_sent: int = 0
    between_hosts_bytes: int = 0
    """Of these, to other hosts."""
    avg_latency_ms: float | None = None
    """From the beginning of the call to its end."""
    expected_ms: float | None = None
    avg_bandwidth_gbps: float | None = None
    """Gbit/s that this rank sent."""


class AdvancedCollectiveOps:
    """Collectives of the ranks of a process group, which make this together and call it in the same order.

    The results are those of ``torch.distributed``, with the same bits on all ranks. With ``async_op`` a call
    returns a handle at once: ``wait()``, ``is_completed()``, ``result()``. After a failed call all later ones
    raise.
    """

    def __init__(
        self,
        world_size: int,
        rank: int,
        topology: NetworkTopology | None = None,
        config: CollectiveOpConfig | None = None,
        *,
        process_group: ProcessGroup | None = None,
        links: MeasuredLinks | None = None,
    ) -> None:
        """Make a group for the collectives, with the timeout of the other one.

        Args:
            world_size: number of ranks of the process group; 1 needs none.
            rank: of this process in it.
            topology: which ranks share a node, and how fast links are, believed. Default: hosts are found by
                boot id and network namespace, and nothing is known of their links before :meth:`measure`.
            config: how to carry them out.
            process_group: default: all ranks.
            links: measured before, in place of a topology.

        Raises:
            RuntimeError: there is no process group.
            ValueError: the process group has another size, or this process another rank in it; the topology
                has too few places; both a topology and links.
            GroupError: the ranks disagree, or one did not answer within the timeout: it is named.
        """
        self.world_size, self.rank, self.config = world_size, rank, config or CollectiveOpConfig()
        self._collectives = _collectives(self, topology, links, process_group)
        group = self._collectives.group
        self.topology = topology or topology_of(group.links)

    @property
    def topology_difference(self) -> str | None:
        """In what way the topology's nodes are not the hosts that were found; None: they are."""
        return difference(self.links.hosts, self._collectives.group.found)

    @property
    def communication_groups(self) -> dict[str, list[int]]:
        """Who works with whom, as global ranks: each node, those that exchange between nodes, the ring."""
        return self._collectives.communication_groups

    @property
    def links(self) -> MeasuredLinks:
        """What choices are based on: measured, given, or default (hosts without figures)."""
        return self._collectives.group.links

    @property
    def metrics(self) -> CommunicationMetrics:
        """What the last call did that is done."""
        last = self._collectives.last
        if last is None:
            return CommunicationMetrics()
        return CommunicationMetrics(
            operation=last.operation.value,
            pattern=last.pattern,
            compression=last.compression,
            reason=last.reason,
            tensor_bytes=last.nbytes,
            total_bytes_sent=last.sent_bytes,
            between_hosts_bytes=last.sent_between_hosts_bytes,
            avg_latency_ms=last.seconds * 1e3,
            expected_ms=None if last.expected_s is None else last.expected_s * 1e3,
            avg_bandwidth_gbps=last.sent_bytes * 8e-9 / last.seconds if last.seconds else None,
        )

    def measure(self, seconds: float = 3.0) -> MeasuredLinks:
        """Measure the links of the process group; choices are based on them from now on. All ranks call this.

        Raises:
            GroupError: a rank failed or did not answer.
            ValueError: ``seconds`` is not positive.
        """
        return self._collectives.measure(seconds)

    def hierarchical_allreduce(
        self, tensor: Tensor, op: str = "sum", async_op: bool = False
    ) -> Tensor | Handle[Tensor]:
        """Reduce over all ranks, in place: inside nodes, between them, and back. The result is in ``tensor``.

        Args:
            tensor: dense, of the same shape and dtype on all ranks.
            op: sum, mean (of floats), max, min or product.
            async_op: return a handle at once.

        Raises:
            As :meth:`.Collectives.all_reduce`.
        """
        pattern = CommunicationPattern.HIERARCHICAL if self.config.use_hierarchical else None
        return _returned(self._collectives.all_reduce(tensor, op, pattern=pattern), async_op)

    def adaptive_allgather(
        self, tensor: Tensor, gather_list: Sequence[Tensor] | None = None, async_op: bool = False
    ) -> list[Tensor] | Handle[list[Tensor]]:
        """What all ranks have, by rank, by the pattern of the config. First dimensions may differ.

        Args:
            tensor: dense.
            gather_list: where to put it; saves that ranks tell each other their shapes. On all ranks or none.
            async_op: return a handle at once.

        Raises:
            As :meth:`.Collectives.all_gather`.
        """
        return _returned(self._collectives.all_gather(tensor, gather_list), async_op)

    def reduce_scatter(
        self, tensor: Tensor, op: str = "sum", async_op: bool = False, *, sizes: Sequence[int] | None = None
    ) -> Tensor | Handle[Tensor]:
        """This rank's rows of the reduction of ``tensor`` over all ranks.

        Args:
            tensor: [N, ...].
            op: sum, mean (of floats), max, min or product.
            async_op: return a handle at once.
            sizes: rows of each rank; default: as equally many as possible.

        Raises:
            As :meth:`.Collectives.reduce_scatter`.
        """
        return _returned(self._collectives.reduce_scatter(tensor, op, sizes), async_op)

    def all_to_all(
        self,
        tensor: Tensor,
        output_sizes: Sequence[int] | None = None,
        input_sizes: Sequence[int] | None = None,
        async_op: bool = False,
    ) -> Tensor | Handle[Tensor]:
        """The rows that the ranks have for this one, by rank.

        Args:
            tensor: [N, ...].
            output_sizes: rows that each rank has for this one; default: ranks tell each other.
            input_sizes: rows of this rank for each; default: equally many.
            async_op: return a handle at once.

        Raises:
            As :meth:`.Collectives.all_to_all`.
        """
        return _returned(self._collectives.all_to_all(tensor, output_sizes, input_sizes), async_op)

    def allreduce_optimized(
        self, tensor: Tensor, op: str = "sum", pattern: CommunicationPattern | str | None = None
    ) -> Coroutine[Any, Any, Tensor]:
        """Reduce over all ranks, in place: begun at once, whether or not it is awaited.

        Args:
            tensor: dense, of the same shape and dtype on all ranks.
            op: sum, mean (of floats), max, min or product.
            pattern: default: that of the config.

        Raises:
            As :meth:`.Collectives.all_reduce`.
        """
        return self._collectives.all_reduce(tensor, op, pattern=_pattern(pattern)).awaited()

    def allgather_optimized(
        self, tensor: Tensor, pattern: CommunicationPattern | str | None = None
    ) -> Coroutine[Any, Any, Tensor]:
        """What all ranks have, one after the other along the first dimension: begun at once.

        Args:
            tensor: [N, ...], dense.
            pattern: default: that of the config.

        Raises:
            As :meth:`.Collectives.all_gather`; ValueError: a scalar.
        """
        from ..links.collectives.gather import joined, with_rows

        return joined(self._collectives.all_gather(with_rows(tensor), pattern=_pattern(pattern)))

    def compress_tensor(
        self, tensor: Tensor, method: CompressionMethod | str, **options: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Payload and metadata: see :func:`.links.compress.payload.compress`."""
        from ..links.compress.payload import compress

        return compress(tensor, CompressionMethod(method), **options)

    def decompress_tensor(self, payload: Tensor, metadata: Mapping[str, Any]) -> Tensor:
        """The inverse: see :func:`.links.compress.payload.decompress`."""
        from ..links.compress.payload import decompress

        return decompress(payload, metadata)

    def get_communication_stats(self) -> dict[str, Any]:
        """What this rank's collectives did.

        ``bytes_on_wire`` and, of these, ``bytes_between_hosts``: what it sent. ``seconds``. ``expected_s``
        and ``measured_s``: sums over the calls whose time was expected, else None. ``choices``: by operation,
        dtype, size, pattern and compression, with the reason. ``basis``: where the cost model's figures are
        from.
        """
        return {
            **self._collectives.stats(),
            "basis": self.links.basis,
            "topology_difference": self.topology_difference,
            "config": asdict(self.config),
        }

    def close(self) -> None:
        """Wait for what was begun; later calls raise."""
        self._collectives.close()


def create_collective_ops(
    world_size: int,
    rank: int,
    topology: NetworkTopology | None = None,
    config: CollectiveOpConfig | None = None,
) -> AdvancedCollectiveOps:
    """See :class:`AdvancedCollectiveOps`."""
    return AdvancedCollectiveOps(world_size, rank, topology, config)


def create_default_topology(node_count: int = 4, gpus_per_node: int = 8) -> NetworkTopology:
    """Nodes with the default rates of :class:`NetworkTopology`."""
    return NetworkTopology(node_count=node_count, gpus_per_node=gpus_per_node)


def register_comm_hook(
    ddp: DistributedDataParallel, method: CompressionMethod | str, **options: Any
) -> HookState:
    """See :func:`.links.compress.hooks.register_comm_hook`."""
    from ..links.compress.hooks import register_comm_hook

    return register_comm_hook(ddp, method, **options)


def _collectives(
    ops: AdvancedCollectiveOps,
    topology: NetworkTopology | None,
    links: MeasuredLinks | None,
    process_group: ProcessGroup | None,
) -> Collectives:
    """Of a group that is as ``ops`` says; a topology is believed, and the difference told."""
    from ..links.collectives.collectives import Collectives

    def known() -> MeasuredLinks | None:
        check_place(ops.world_size, ops.rank, process_group)
        if topology is not None and links is not None:
            raise ValueError("give a topology or links, not both")
        return links if topology is None else links_of(topology, ops.world_size)

    need_group(ops.world_size, f"making collectives of {ops.world_size} ranks", process_group)
    return Collectives(process_group, links=known, settings=ops.config.settings())


def _pattern(pattern: CommunicationPattern | str | None) -> CommunicationPattern | None:
    return None if pattern is None else CommunicationPattern(pattern)


def _returned(handle: Handle[_T], async_op: bool) -> _T | Handle[_T]:
    return handle if async_op else handle.result()
