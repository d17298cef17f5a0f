"""How much the ranks of a ring send each other."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.sharding import chunks_of
from ..core.validation import check_heads, check_int
from .config import RingAttentionConfig
from .schedule import blocks_between
from .sharding import padded_length


def ring_traffic(
    config: RingAttentionConfig,
    seq: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    world_size: int,
    is_causal: bool,
) -> Tensor:
    """Bytes from rank to rank in one forward of :class:`RingDilatedAttention`, for batch 1.

    They are keys and values: each rank receives what :meth:`DilatedPattern.remote_keys` says, from the ranks
    that hold it. Not counted: a byte for each row of keys of a branch if there is a ``key_padding_mask``, and
    what the ranks agree on before each call, 1 KiB from each rank to each other.

    A backward sends the same again, and gradients the other way, in float32, or float64 for float64. In
    bfloat16 a step of training sends ``2 * traffic + 2 * traffic.T``, in float32 ``2 * traffic + traffic.T``.

    Args:
        config: of the ring.
        seq: length of the whole sequence; one that does not divide is padded as by ``shard_sequence``.
        num_heads, num_kv_heads: query heads, and key/value heads.
        head_dim: of keys and values.
        dtype: of keys and values; under autocast its dtype.
        world_size: P, number of ranks.
        is_causal: no query sees a later token.

    Returns:
        int64 ``[P, P]``, from the rank of the row to that of the column (in the ring); the diagonal is 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    check_heads(num_heads, num_kv_heads)
    for name, value, least in (("seq", seq, 0), ("head_dim", head_dim, 1), ("world_size", world_size, 1)):
        check_int(name, value)
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    seq = padded_length(seq, world_size, config.sharding)
    chunks = [chunks_of(rank, world_size, seq, config.sharding) for rank in range(world_size)]
    branches = tuple(zip(config.segment_lengths, config.dilation_rates, strict=True))
    traffic = torch.zeros(world_size, world_size, dtype=torch.int64)
    for source in range(world_size):
        for target in range(world_size):
            if source != target:
                blocks = blocks_between(
                    chunks[source],
                    chunks[target],
                    branches,
                    num_heads=num_heads,
                    group=num_heads // num_kv_heads,
                    is_causal=is_causal,
                )
                rows = sum(block.num_rows * block.num_heads for block in blocks)
                traffic[source, target] = 2 * rows * head_dim * dtype.itemsize
    return traffic
