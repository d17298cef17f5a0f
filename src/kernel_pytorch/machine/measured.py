"""What a device was measured to reach."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MeasuredPeaks:
    """Medians. A CPU's are those of all threads that torch uses, whichever package they run on."""

    device_id: int
    flops: dict[str, float]
    """FLOP/s of n x n matrix products by dtype; "tf32" is float32 with its products rounded."""
    memory_gb_s: float | None
    """Bytes read plus bytes written by a copy."""
    matrix_sizes: dict[str, int]
    """The n of the products, by dtype: as large as about a second allows."""
    copy_bytes: int
    threads: int | None
    """Of a CPU."""
    flops_share: dict[str, float]
    """Of the vendor's figure, where it is known."""
    memory_share: float | None
    unmeasured: dict[str, str] = field(default_factory=dict)
    """What was not measured, a dtype or "copy", and why."""
