"""How collectives are carried out."""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import CommunicationPattern, CompressionMethod


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to carry out what is not said call by call."""

    pattern: CommunicationPattern = CommunicationPattern.ADAPTIVE
    compression: CompressionMethod = CompressionMethod.NONE
    """Of all-reduces that sum floats of 32 bits or more. ADAPTIVE: BF16 or nothing, by expected time."""
    chunk_bytes: int = 64 << 20
    """Of the largest chunk."""
    overlap: bool = True
    """Whether a chunk begins before the one before is done."""
    hierarchical: bool = True
    """Whether ADAPTIVE may choose HIERARCHICAL."""
    compress_below_gbit_s: float = 100.0
    """ADAPTIVE compresses nothing where the slowest link between hosts has this rate or more."""
