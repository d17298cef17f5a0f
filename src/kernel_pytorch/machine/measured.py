"""Measured figures of a device."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MeasuredPeaks:
    """Medians. For a CPU they are those of all torch threads, whichever package these run on."""

    device_id: int
    flops: dict[str, float]
    """FLOP/s of n x n matrix products by data type; "tf32" is float32 with factors rounded to TF32."""
    memory_gb_s: float | None
    """Rate of a copy, counting bytes read and bytes written; None if not measured."""
    matrix_sizes: dict[str, int]
    """n by data type: the largest for which the figure takes about a second."""
    copy_bytes: int
    """Size of the copy; 0 if not measured."""
    threads: int | None
    """Number of torch threads on a CPU."""
    flops_share: dict[str, float]
    """Share of the vendor's peak by data type, where that is known."""
    memory_share: float | None
    """Share of the vendor's peak memory bandwidth."""
    unmeasured: dict[str, str] = field(default_factory=dict)
    """Reasons by data type, or "copy", that was not measured."""
