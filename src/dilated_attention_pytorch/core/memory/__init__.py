"""Buffers that are used again instead of allocated again."""

from .unified_pool import UnifiedMemoryPool

__all__ = ["UnifiedMemoryPool"]
