"""Dilated attention around a ring of processes."""

from ..legacy import renamed
from .base import BaseRingAttention
from .config import RingAttentionConfig
from .distributed import RingDistributedDilatedAttention
from .production import RingDilatedAttention
from .production_hilbert import RingDilatedAttentionHilbert
from .sharding import shard_sequence, unshard_sequence

__all__ = [
    "BaseRingAttention",
    "RingAttentionConfig",
    "RingDilatedAttention",
    "RingDilatedAttentionHilbert",
    "RingDistributedDilatedAttention",
    "shard_sequence",
    "unshard_sequence",
]


def __getattr__(name: str) -> object:
    return renamed(name, __name__)
