"""Variants of ring attention."""

from .hilbert import HilbertMixin

__all__ = ["HilbertMixin", "HilbertRingAttention"]


def __getattr__(name: str) -> object:
    if name == "HilbertRingAttention":
        from ..production_hilbert import RingDilatedAttentionHilbert  # it imports HilbertMixin from here

        return RingDilatedAttentionHilbert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
