"""Where a step is computed: on one rank, or spread over several."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..models import LongNetConfig, LongNetLM
from ..models.long_net import Attend
from ..ring_attention import RingAttentionConfig, RingDilatedAttention
from .ranks import Ranks
from .split import Split


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rank among the others; by default, a process alone."""

    ranks: Ranks = field(default_factory=Ranks)
    """All of them."""
    split: Split = field(default_factory=Split)
    """The part of each batch that this one computes."""
    attend: Attend | None = None
    """Attention around the ranks that share a context; None for within this one."""


def spread(model: LongNetLM, ranks: Ranks, split: Split, device: torch.device) -> Place:
    """Shard the parameters of ``model`` over all ranks, and connect the ranks that share a context.

    The parameters must be equal on all ranks. Each block is gathered when it computes.
    """
    if ranks.size == 1:
        return Place()
    # A process alone does not need them, and they take as long to import as the rest of this package.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(
        device.type, (split.num_data, split.num_context), mesh_dim_names=("data", "context")
    )
    # The same ranks in the same order, as one dimension.
    flat = init_device_mesh(device.type, (ranks.size,), mesh_dim_names=("ranks",))
    for block in model.blocks:
        fully_shard(block, mesh=flat)
    fully_shard(model, mesh=flat)
    attend = None
    if split.num_context > 1:
        attend = _around_ring(model.config, split, mesh.get_group("context"))
    return Place(ranks=ranks, split=split, attend=attend)


def _around_ring(config: LongNetConfig, split: Split, group: ProcessGroup) -> Attend:
    ring = RingDilatedAttention(
        RingAttentionConfig(config.segment_lengths, config.dilation_rates, sharding=split.sharding), group
    )

    def attend(_layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ring(query, key, value, is_causal=True)  # type: ignore[no-any-return]

    return attend
