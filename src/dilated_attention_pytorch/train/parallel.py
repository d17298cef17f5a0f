"""How a step is spread over ranks: sharded parameters, parts of the batch, attention around a ring."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..models import LongNetConfig, LongNetLM
from ..models.long_net import Attend
from ..ring_attention import RingAttentionConfig, RingDilatedAttention
from .batch_parts import BatchPart
from .ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """What one rank does of each step; by default a process alone does all of it."""

    ranks: Ranks = field(default_factory=Ranks)
    """All of them."""
    part: BatchPart = field(default_factory=BatchPart)
    """The part of each batch that this one computes."""
    attend: Attend | None = None
    """Attention around the ranks that share a context; None for within this one."""


def parallelize(model: LongNetLM, ranks: Ranks, part: BatchPart, device: torch.device) -> Parallel:
    """Shard the parameters of ``model`` over all ranks, and connect the ranks that share a context.

    The parameters must be equal on all ranks. Each block is gathered when it computes.
    """
    if ranks.size == 1:
        return Parallel()
    # A process alone does not need them, and they take as long to import as the rest of this package.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(
        device.type, (part.num_data, part.num_context), mesh_dim_names=("data", "context")
    )
    # The same ranks in the same order, as one dimension.
    flat = init_device_mesh(device.type, (ranks.size,), mesh_dim_names=("ranks",))
    for block in model.blocks:
        fully_shard(block, mesh=flat)
    fully_shard(model, mesh=flat)
    attend = None
    if part.num_context > 1:
        attend = _around_ring(model.config, part, mesh.get_group("context"))
    return Parallel(ranks=ranks, part=part, attend=attend)


def _around_ring(config: LongNetConfig, part: BatchPart, group: ProcessGroup) -> Attend:
    ring = RingDilatedAttention(
        RingAttentionConfig(
            segment_lengths=config.segment_lengths,
            dilation_rates=config.dilation_rates,
            sharding=part.sharding,
        ),
        group,
    )

    def attend(_layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ring(query, key, value, is_causal=True)  # type: ignore[no-any-return]

    return attend
