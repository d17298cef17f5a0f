"""Dilated attention around a ring of processes, with the numbers of one device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import BaseRingAttention
from .call import ring_attention
from .config import RingAttentionConfig, of_old_call
from .group import Ring, Shared, ring_group


class RingDilatedAttention(BaseRingAttention):
    """Exact dilated attention (:func:`~dilated_attention_pytorch.dilated_attention`) over a sharded sequence.

    Every rank of the group calls it with its shard (see ``shard_sequence``), and gets its shard of the result
    and of the gradients. They equal those of one device for every number of ranks. Segments that lie in one
    shard stay local; for the others the dilated keys and values of segments in which a rank holds a token
    travel to it (:meth:`DilatedPattern.remote_keys`). All ranks must call the backward as well, or none.

    Args:
        config: what all ranks agree on. What older versions took instead (``segment_lengths``,
            ``dilation_rates`` and more) still builds one, with a DeprecationWarning that shows the new call.
        process_group: the ring; ``"local"`` for one device, which holds the whole sequence. None means
            ``"local"`` where this process is alone, and is refused in a world of several ranks. In a process
            alone ``config.ring_size`` cuts the sequence into that many blocks of keys that are merged as
            around a ring, with the same numbers.

    Raises:
        TypeError, ValueError: it is not clear who takes part, this rank does not, or ``config.ring_size`` is
            not the number of ranks. Also raised by a call, if the world was initialised in between.
    """

    def __init__(
        self, config: RingAttentionConfig | None = None, process_group: Ring = None, **old: Any
    ) -> None:
        config, process_group = of_old_call(type(self).__name__, config, process_group, old)
        super().__init__(config)
        ring_group(process_group, self.config.ring_size)
        self._process_group = Shared(f"{type(self).__name__}.process_group", process_group)

    @property
    def process_group(self) -> Ring:
        """As given. A deep copy has the same; a module with a group cannot be pickled."""
        return self._process_group.value

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As :meth:`BaseRingAttention.forward`.

        Raises:
            TypeError, ValueError: naming the argument and its values.
            NotImplementedError: around a ring, under torch.func, forward-mode AD or batched gradients, or on
                the device "meta".
            RingError: a rank failed, did not answer within the group's timeout, or works on another problem.
        """
        out, lse = ring_attention(
            q,
            k,
            v,
            self.config,
            ring_group(self.process_group, self.config.ring_size),
            is_causal,
            key_padding_mask,
            pool=self.memory_pool,
        )
        return (out, lse) if return_lse else out
