"""Thresholds at or above which a reading counts as a fault."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Each is the smallest value that is a fault. ``_share``: of 1; ``_s``: seconds without interruption.

    Raises:
        ValueError: a value that is not positive, a share above 1, or disk shares in the wrong order.
        TypeError: a value that is not a number.
    """

    temperature_c: float = 85.0
    """Of a GPU; lower if it slows itself down below 87 C (:func:`.max_temperature_c`)."""
    cpu_temperature_c: float = 95.0
    """CPUs slow themselves down at 95 to 105 C."""
    temperature_sustained_s: float = 30.0
    """Applies to all temperatures."""
    memory_temperature_c: float = 95.0
    """"Memory Max Operating Temp" in nvidia-smi, of an A100 or H100."""
    throttle_sustained_s: float = 30.0
    """Slowed down by heat or by a power brake. Power limits are ignored: they are set on purpose."""
    clock_loss_share: float = 0.15
    """Below the median clock of the loaded devices of the same name, if there are three or more and most of
    them agree. Equal GPUs at a power limit differ by up to a tenth."""
    clock_loss_sustained_s: float = 30.0
    """Under load; idle time is ignored."""
    load_share: float = 0.5
    """Utilization at or above which a device is loaded."""
    silent_s: float = 5.0
    """No answer from a device that has answered before."""
    ecc_corrected_per_hour: float = 100.0
    ecc_uncorrected: float = 1.0
    """Since the first reading, or the reset."""
    retired_pages: float = 1.0
    """Retired pages or remapped rows since the first reading, or the reset."""
    nvlink_errors_per_minute: float = 100.0
    pcie_replays_per_minute: float = 9.0
    """NVIDIA's DCGM tolerates 8."""
    memory_stall_share: float = 0.1
    """Share of the time in which some task waited for memory."""
    cpu_stall_share: float = 0.5
    """Share of the time in which some task waited for a CPU."""
    pressure_window_s: float = 30.0
    """Window of the two shares; Linux updates their counters every 2 s."""
    oom_kills_per_hour: float = 1.0
    disk_full_share: float = 0.9
    disk_failed_share: float = 0.98
    """Practically full: the next checkpoint will not fit."""
    nic_errors_per_minute: float = 60.0
    carrier_lost_s: float = 5.0

    def __post_init__(self) -> None:
        for name in self.names():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
            if name.endswith("_share") and value > 1:
                raise ValueError(f"{name} is a share of 1, got {value}")
        if self.disk_full_share > self.disk_failed_share:
            raise ValueError(
                f"disk_full_share must not exceed disk_failed_share, "
                f"got {self.disk_full_share} and {self.disk_failed_share}"
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))
