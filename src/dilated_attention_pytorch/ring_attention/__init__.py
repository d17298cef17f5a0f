"""Dilated attention around a ring of processes."""

from ..legacy import renamed
from .base import BaseRingAttention
from .config import RingAttentionConfig
from .distributed import RingDistributedDilatedAttention
from .production import RingDilatedAttention
from .production_hilbert import RingDilatedAttentionHilbert
from .sharding import shard_sequence, unshard_sequence
from .traffic import ring_traffic

__all__ = [
    "BaseRingAttention",
    "RingAttentionConfig",
    "RingDilatedAttention",
    "RingDilatedAttentionHilbert",
    "RingDistributedDilatedAttention",
    "ring_traffic",
    "shard_sequence",
    "unshard_sequence",
]


def __getattr__(name: str) -> object:
    return renamed(name, __name__)
