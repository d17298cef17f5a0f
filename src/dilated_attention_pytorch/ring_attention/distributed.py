"""Dilated attention over a device mesh: a ring, or a ring of groups that divide the heads."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from ..core.autocast import autocast
from ..core.masks import ignored_keys
from ..core.validation import check_bool, check_qkv
from .base import BaseRingAttention
from .call import REFUSALS, agree_on_call, device_of, ring_attention, warn_of_gaps
from .config import RingAttentionConfig
from .group import Shared
from .utils.communication import RingError, all_to_all, check_travels, report_failure


class RingDistributedDilatedAttention(BaseRingAttention):
    """:class:`RingDilatedAttention` over a :class:`~torch.distributed.DeviceMesh`.

    On a 1-D mesh the ranks are the ring. On a 2-D mesh (ring, heads) rank (o, i) holds part i of ring shard
    o; an all-to-all over ``heads`` gives it all of shard o for its share of the heads (DeepSpeed-Ulysses,
    arXiv:2309.14509), and its ring goes through its column of the mesh.

    Args:
        config: what all ranks agree on.
        device_mesh: 1-D, or 2-D (ring, heads).

    Raises:
        ValueError: the mesh has more dimensions, ``config.ring_size`` is not its first, or this rank is not
            in it.
    """

    def __init__(self, config: RingAttentionConfig, device_mesh: DeviceMesh) -> None:
        super().__init__(config)
        if not isinstance(device_mesh, DeviceMesh):
            raise TypeError(f"device_mesh must be a DeviceMesh, got {type(device_mesh).__name__}")
        if device_mesh.ndim not in (1, 2):
            raise ValueError(f"device_mesh must have 1 or 2 dimensions, got {device_mesh.ndim}")
        if device_mesh.get_coordinate() is None:
            raise ValueError(
                f"device_mesh must contain this rank, got a mesh of size {device_mesh.size()} without "
                f"rank {dist.get_rank()}, which takes no part"
            )
        if config.ring_size not in (None, device_mesh.size(0)):
            raise ValueError(
                "ring_size must be the size of the mesh's first dimension or None, "
                f"got {config.ring_size=} for {device_mesh.size(0)}"
            )
        self._device_mesh = Shared(f"{type(self).__name__}.device_mesh", device_mesh)

    @property
    def device_mesh(self) -> DeviceMesh:
        """As given. A deep copy has the same; the module cannot be pickled."""
        return self._device_mesh.value

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As :meth:`BaseRingAttention.forward`; on a 2-D mesh P is the number of all ranks.

        Raises:
            TypeError, ValueError: naming the argument and its values; on a 2-D mesh the number of query heads
                and that of key/value heads must be multiples of its second dimension.
            NotImplementedError: around a ring, under torch.func, forward-mode AD or batched gradients, or on
                the device "meta".
            RingError: a rank failed, did not answer in time, or works on another problem.
        """
        mesh = self.device_mesh
        ring = mesh.get_group(0)
        if mesh.ndim == 1 or mesh.size(1) == 1:
            out, lse = ring_attention(
                q, k, v, self.config, ring, is_causal, key_padding_mask, pool=self.memory_pool
            )
            return (out, lse) if return_lse else out
        group, size = mesh.get_group(1), mesh.size(1)
        try:
            q, k, v = autocast(q, k, v)
            check_qkv(q, k, v)
            check_travels(q, k, v)
            if key_padding_mask is not None:
                key_padding_mask = ignored_keys(key_padding_mask, q)
            check_bool("is_causal", is_causal)
            for name, heads in (("query", q.shape[2]), ("key/value", k.shape[2])):
                if heads % size:
                    raise ValueError(
                        f"the number of {name} heads must be a multiple of the mesh's second dimension, "
                        f"got {heads} heads for {size} ranks"
                    )
            warn_of_gaps(self.config, q)
        except REFUSALS as error:
            for others in (group, ring):
                report_failure(others, device_of(q), error)
            raise
        try:
            key_padding_mask = agree_on_call(
                group, q, k, v, self.config, is_causal, key_padding_mask, return_lse=bool(return_lse)
            )
        except RingError as error:
            report_failure(ring, q.device, error)  # its other ranks are not in this group
            raise
        if key_padding_mask is not None:
            everywhere = key_padding_mask[:, :, None, None].expand(-1, -1, size, 1)
            key_padding_mask = _exchange(everywhere, group, 2, 1)[:, :, 0, 0]
        q, k, v = (_exchange(x, group, 2, 1) for x in (q, k, v))
        first_head = mesh.get_local_rank(1) * q.shape[2]
        out, lse = ring_attention(
            q,
            k,
            v,
            self.config,
            ring,
            is_causal,
            key_padding_mask,
            first_head=first_head,
            pool=self.memory_pool,
        )
        out = _exchange(out, group, 1, 2)
        return (out, _exchange(lse, group, 2, 1)) if return_lse else out


def _exchange(x: Tensor, group: ProcessGroup, split: int, join: int) -> Tensor:
    """Split along one dimension, send part i to rank i, join the parts received along another."""
    parts = torch.stack(x.chunk(dist.get_world_size(group), split))
    return torch.cat(all_to_all(parts, group).unbind(), join)
