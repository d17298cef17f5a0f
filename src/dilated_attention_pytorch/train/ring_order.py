"""In which order ranks take their places around the rings of a training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kernel_pytorch.links.collectives.flat import keeps_order
from kernel_pytorch.links.facts import MeasuredLinks
from kernel_pytorch.links.hosts import group_by_host
from kernel_pytorch.links.measure import home_of_this_rank
from kernel_pytorch.links.order import rank_order
from kernel_pytorch.placement.host_traffic import busiest_link

from ..models import LongNetConfig
from ..ring_attention import RingAttentionConfig, ring_traffic
from .batch_parts import BatchPart
from .options import TrainOptions
from .ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class RingOrder:
    """Who takes which place."""

    ranks: tuple[int, ...]
    """For each place the rank that takes it: ring by ring, in each ring shard by shard."""
    busiest: float
    """What the busiest link between hosts carries, as a fraction of that in ascending order."""
    total: float
    """What all hosts send each other, as a fraction of that in ascending order."""
    possible: bool
    """Whether this PyTorch lets a group have its ranks in this order."""

    @property
    def words(self) -> str:
        order = " ".join(map(str, self.ranks))
        link = self.busiest < 1
        who = "the busiest link between hosts" if link else "hosts"
        less = f"{1 - self.busiest:.0%} less" if link else f"each other {1 - self.total:.0%} less"
        if self.possible:
            return f"in the order {order}: {who} {'carries' if link else 'send'} {less}"
        would = f"would {'carry' if link else 'send'}"
        return (
            f"in the order {order} {who} {would} {less}, but PyTorch before 2.13 sorts the ranks of a group"
        )


def choose_ring_order(
    ranks: Ranks, part: BatchPart, config: LongNetConfig, options: TrainOptions
) -> RingOrder | None:
    """The order in which the busiest link between hosts carries least in a step; None: the ascending one.

    All ranks call it. What the rings send counts, the rest of a step being the same in any order.
    """
    if part.num_context == 1:
        return None
    hosts = group_by_host(ranks.gather(home_of_this_rank()))
    if len(hosts) == 1:
        return None
    traffic = _traffic_of_step(part, config, options)
    links = MeasuredLinks(hosts=hosts, basis="given")
    found = rank_order(links, traffic)
    if found.ranks == tuple(range(ranks.size)):
        return None
    before, after = (
        busiest_link(traffic, [links.host_of[rank] for rank in order])
        for order in (range(ranks.size), found.ranks)
    )
    return RingOrder(
        ranks=found.ranks,
        busiest=after / before,
        total=found.crossing_bytes / found.before_bytes,
        possible=keeps_order(),
    )


def _traffic_of_step(
    part: BatchPart, config: LongNetConfig, options: TrainOptions
) -> npt.NDArray[np.float64]:
    """Bytes from place to place ``[P, P]``, of one row and layer: each ring is a block on the diagonal."""
    ring = RingAttentionConfig(
        segment_lengths=config.segment_lengths, dilation_rates=config.dilation_rates, sharding=part.sharding
    )
    dtype = getattr(torch, options.dtype)
    heads = config.num_heads, config.num_kv_heads or config.num_heads
    head_dim = config.embed_dim // config.num_heads
    forward = ring_traffic(ring, options.seq_len, *heads, head_dim, dtype, part.num_context, True).numpy()
    gradients = forward.T * (torch.float32.itemsize / dtype.itemsize)
    return np.kron(np.eye(part.num_data), (3 if options.recompute else 2) * forward + gradients)
