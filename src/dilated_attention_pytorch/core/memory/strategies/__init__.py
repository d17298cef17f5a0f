"""Strategies: how a pool keeps free memory, and which of it serves a request."""

from .adaptive import AdaptiveStrategy
from .base import Strategy
from .bucketed import BucketedStrategy
from .fragment_aware import FragmentAwareStrategy
from .numa import NUMAStrategy
from .simple import SimpleStrategy

__all__ = [
    "AdaptiveStrategy",
    "BucketedStrategy",
    "FragmentAwareStrategy",
    "NUMAStrategy",
    "SimpleStrategy",
    "Strategy",
]
