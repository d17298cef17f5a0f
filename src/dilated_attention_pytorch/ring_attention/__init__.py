"""Dilated attention around a ring of processes."""

from .base import BaseRingAttention
from .config import RingAttentionConfig
from .production import RingDilatedAttention
from .production_hilbert import RingDilatedAttentionHilbert
from .sharding import shard_sequence, unshard_sequence

__all__ = [
    "BaseRingAttention",
    "RingAttentionConfig",
    "RingDilatedAttention",
    "RingDilatedAttentionHilbert",
    "shard_sequence",
    "unshard_sequence",
]
