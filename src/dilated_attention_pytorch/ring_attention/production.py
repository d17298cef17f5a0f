"""Dilated attention around a ring of processes, with the numbers of one device."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from .base import BaseRingAttention
from .call import ring_attention
from .config import RingAttentionConfig


class RingDilatedAttention(BaseRingAttention):
    """Exact dilated attention (:func:`~dilated_attention_pytorch.dilated_attention`) over a sharded sequence.

    Every rank of the group calls it with its shard (see ``shard_sequence``), and gets its shard of the result
    and of the gradients. They equal those of one device for every number of ranks. Segments that lie in one
    shard stay local; for the others the dilated keys and values of segments in which a rank holds a token
    travel to it (:meth:`DilatedPattern.remote_keys`). All ranks must call the backward as well, or none.

    Args:
        config: what all ranks agree on.
        process_group: the ring. Without one the whole sequence is here; ``config.ring_size`` then cuts it
            into that many blocks of keys that are merged as around a ring, with the same numbers.

    Raises:
        ValueError: ``config.ring_size`` is not the group's size.
    """

    def __init__(self, config: RingAttentionConfig, process_group: ProcessGroup | None = None) -> None:
        super().__init__(config)
        self.process_group = process_group
        if process_group is not None and config.ring_size not in (None, dist.get_world_size(process_group)):
            raise ValueError(
                f"ring_size must be the size of process_group or None, got {config.ring_size=} "
                f"for a group of {dist.get_world_size(process_group)}"
            )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`BaseRingAttention.forward`.

        Raises:
            TypeError, ValueError: naming the argument and its values.
            RingError: a rank failed, did not answer within the group's timeout, or works on another problem.
        """
        return ring_attention(
            q, k, v, self.config, self.process_group, is_causal, key_padding_mask, pool=self.memory_pool
        )
