"""Dilated attention around a ring, over tokens in the order of a Hilbert curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..kernels.hilbert import check_grid_shape
from .call import ring_attention
from .config import RingAttentionConfig, of_old_call
from .group import Ring, ring_group
from .production import RingDilatedAttention
from .variants.hilbert import HilbertMixin


class RingDilatedAttentionHilbert(HilbertMixin, RingDilatedAttention):
    """:class:`RingDilatedAttention` for tokens on a grid: segments are stretches of a Hilbert curve.

    It takes and returns shards of a sequence in the order of the curve: put the whole sequence in order
    with :meth:`apply_hilbert_ordering`, then cut it with ``shard_sequence``. A token's rank along the curve
    decides to which segments and offsets it belongs. Causality is by its row-major index: no token sees one
    that comes later in row-major order. What ``shard_sequence`` pads comes after all tokens in both orders;
    pass its mask, as for any ring attention.

    Args:
        config, process_group: as for :class:`RingDilatedAttention`.
        grid_shape: 1 to 3 sides, whose product is n; None: the order of the sequence, as it is.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """

    def __init__(
        self,
        config: RingAttentionConfig | None = None,
        process_group: Ring = None,
        grid_shape: Sequence[int] | None = None,
        **old: Any,
    ) -> None:
        config, process_group = of_old_call(type(self).__name__, config, process_group, old)
        super().__init__(config, process_group)
        self.grid_shape = None if grid_shape is None else check_grid_shape(grid_shape)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As :meth:`RingDilatedAttention.forward`, tokens in the order of the curve.

        Raises:
            ValueError: also when the shards do not hold one token for each cell.
        """
        # What is not a dense [b, n/P, h, d] is left to the call below to refuse.
        group = ring_group(self.process_group, self.config.ring_size)
        shaped = isinstance(q, Tensor) and not q.is_nested and q.dim() == 4
        order = self._padded_order(q, group) if shaped else None
        out, lse = ring_attention(
            q,
            k,
            v,
            self.config,
            group,
            is_causal,
            key_padding_mask,
            order=order,
            grid_shape=self.grid_shape,
            pool=self.memory_pool,
        )
        return (out, lse) if return_lse else out

    def _padded_order(self, query: Tensor, group: ProcessGroup | None) -> Tensor | None:
        """The row-major index of every position of all ranks, those of the padded tail included."""
        order = self._hilbert_order_on(query.device)
        if order is None:
            return None
        world = 1 if group is None else dist.get_world_size(group)
        chunks = world if self.config.sharding == "contiguous" else 2 * world
        total = world * query.shape[1]
        if not len(order) < total < len(order) + chunks:
            return order
        return torch.cat([order, torch.arange(len(order), total, device=order.device)])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grid_shape={self.grid_shape}"
