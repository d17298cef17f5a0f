"""What is read over and over: a :class:`Snapshot` each interval, the same from hardware as from a trace.

A value is None where it could not be read. Counters only grow, from any start (the boot, the driver's load).
"""

from __future__ import annotations

import msgspec


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    utilization: float | None = None
    """Share of the time that it computed, 0 to 1."""
    memory_used_bytes: int | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Empty: not slowed down. NVML's reasons, an idle GPU aside (a CPU has ``hw_thermal`` alone): power_cap,
    hw_slowdown, hw_thermal, hw_power_brake, sw_thermal, sync_boost, clocks_setting."""
    energy_j: float | None = None
    """Counter."""
    ecc_corrected: int | None = None
    """Counter of memory errors that were corrected."""
    ecc_uncorrected: int | None = None
    """Counter of memory errors that were not."""
    retired_pages: int | None = None
    """Counter of retired pages, or of remapped rows on GPUs that remap (Ampere and later)."""
    remap_failed: bool | None = None
    """A faulty row could not be remapped."""
    remap_pending: bool | None = None
    """Faulty rows or pages wait for a reset of the device, after which they are not used any more."""
    nvlink_errors: int | None = None
    """Counter of replays, recoveries and CRC errors on all its NVLinks."""
    pcie_replays: int | None = None
    """Counter."""
    xids: tuple[int, ...] = ()
    """Numbers of the driver's error reports (Xid) since the snapshot before."""
    lost: bool | None = None
    """The driver counts the device but cannot open it: it fell off the bus, or waits for a reset."""
    age_s: float = 0.0
    """How long before its snapshot it was read, in seconds, where the driver did not answer in time."""

    @property
    def silent(self) -> bool:
        """The device did not answer."""
        return self == DeviceReading()


class NicReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    carrier: bool | None = None
    errors: int | None = None
    """Counter of receive and transmit errors."""
    fell_off: bool = False
    """Its device has left the bus, and with it the interface; it was no virtual function."""


class DiskReading(msgspec.Struct, frozen=True, kw_only=True):
    total_bytes: int
    free_bytes: int
    """Free for users without privileges."""


class HostReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    memory_available_bytes: int | None = None
    memory_stall_s: float | None = None
    """Counter of seconds in which some task waited for memory (pressure stall information, "some")."""
    cpu_stall_s: float | None = None
    """Counter of seconds in which some task waited for a CPU."""
    oom_kills: int | None = None
    """Counter."""
    nics: dict[str, NicReading] = {}
    disks: dict[str, DiskReading] = {}
    """By mount point."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    time_s: float
    """Seconds since 1970."""
    devices: dict[int, DeviceReading]
    """By device id."""
    host: HostReading | None = None
