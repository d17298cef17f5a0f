"""How a step is spread over ranks: sharded parameters, parts of the batch, attention around a ring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from kernel_pytorch.placement.mesh import group_of_this_rank
from kernel_pytorch.placement.walk import CP

from ..models import LongNetConfig, LongNetLM
from ..models.long_net import Attend
from ..ring_attention import RingAttentionConfig, RingDilatedAttention
from .batch_parts import BatchPart
from .ranks import Ranks
from .ring_order import RingOrder


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """What one rank does of each step; by default a process alone does all of it."""

    ranks: Ranks = field(default_factory=Ranks)
    """All of them."""
    part: BatchPart = field(default_factory=BatchPart)
    """The part of each batch that this one computes."""
    attend: Attend | None = None
    """Attention around the ranks that share a context; None for within this one."""
    order: RingOrder | None = None
    """A better order of the ranks around the rings than the ascending one; None: there is none."""


def parallelize(
    model: LongNetLM, ranks: Ranks, part: BatchPart, device: torch.device, order: RingOrder | None = None
) -> Parallel:
    """Shard the parameters of ``model`` over all ranks, and connect the ranks that share a context.

    The parameters must be equal on all ranks. Each block is gathered when it computes.

    Args:
        model: what is trained.
        ranks: all of them.
        part: of each batch that this one computes if all ranks take their places in ascending order.
        device: where this one computes.
        order: in which they do.
    """
    if ranks.size == 1:
        return Parallel()
    # A process alone does not need them, and they take as long to import as the rest of this package.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    flat = init_device_mesh(device.type, (ranks.size,), mesh_dim_names=("ranks",))
    for block in model.blocks:
        fully_shard(block, mesh=flat)
    fully_shard(model, mesh=flat)
    attend = None
    if part.num_context > 1:
        if order is not None and order.possible:
            part = part.at(order.ranks.index(ranks.rank))
            places = np.reshape(order.ranks, (part.num_data, 1, part.num_context, 1))
            ring = group_of_this_rank(places, CP)
        else:
            shape, names = (part.num_data, part.num_context), ("data", "context")
            ring = init_device_mesh(device.type, shape, mesh_dim_names=names).get_group("context")
        attend = _around_ring(model.config, part, ring)
    return Parallel(ranks=ranks, part=part, attend=attend, order=order)


def wrap_blocks(model: LongNetLM, *, recompute: bool = False, backend: str | None = None) -> None:
    """Change in place how the blocks of ``model`` compute where gradients are needed, before or after
    :func:`parallelize`. The names of its weights stay.

    Args:
        model: what is trained.
        recompute: keep no activations inside a block, compute them anew in the backward: the same numbers.
        backend: of ``torch.compile``, which compiles each block, ``"inductor"`` for instance; the numbers
            change by rounding. None: not compiled.
    """
    for block in model.blocks:
        # Inside FSDP's hooks, so that a block is gathered once for its recomputation and its backward.
        forward = plain = block.forward
        if backend is not None:
            forward = torch.compile(forward, backend=backend)
        if recompute:
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        if forward is not plain:
            block.forward = _with_gradients(forward, plain)


def _with_gradients(training: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """``training`` where gradients are needed, else ``plain``: each length of a text would be compiled."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (training if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward


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

    # Messages cannot be compiled, and what is between them need not be.
    return torch.compiler.disable(attend)  # type: ignore[no-any-return, no-untyped-call]
