"""Dilated attention around a ring of processes."""

from .base import BaseRingAttention
from .config import RingAttentionConfig
from .distributed import RingDistributedDilatedAttention
from .production import RingDilatedAttention
from .sharding import shard_sequence, unshard_sequence

__all__ = [
    "BaseRingAttention",
    "RingAttentionConfig",
    "RingDilatedAttention",
    "RingDistributedDilatedAttention",
    "shard_sequence",
    "unshard_sequence",
]
