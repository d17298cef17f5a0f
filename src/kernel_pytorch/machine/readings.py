"""What is sampled: a :class:`Snapshot` each interval, in the same form from hardware and from a trace.

A value is None where it could not be read. Counters start at any value (at boot, or when a driver is loaded)
and only grow.
"""

from __future__ import annotations

import msgspec


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reading of a device."""

    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    utilization: float | None = None
    """Share of the time in which it computed, 0 to 1."""
    memory_used_bytes: int | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Why its clock is lowered; empty if it is not. NVML's reasons except idle: power_cap, hw_slowdown,
    hw_thermal, hw_power_brake, sw_thermal, sync_boost, clocks_setting; a CPU has hw_thermal only."""
    energy_j: float | None = None
    """Counter of the energy drawn."""
    ecc_corrected: int | None = None
    """Counter of memory errors that were corrected."""
    ecc_uncorrected: int | None = None
    """Counter of memory errors that could not be corrected."""
    retired_pages: int | None = None
    """Counter of retired pages, or of remapped rows on GPUs that remap (Ampere and later)."""
    remap_failed: bool | None = None
    """Whether a faulty row could not be remapped."""
    remap_pending: bool | None = None
    """Whether faulty rows or pages wait for a reset of the device to be taken out of use."""
    nvlink_errors: int | None = None
    """Counter of replays, recoveries and CRC errors on all its NVLinks."""
    pcie_replays: int | None = None
    """Counter of PCIe replays."""
    xids: tuple[int, ...] = ()
    """Numbers of the driver's error reports (Xid) since the last snapshot."""
    lost: bool | None = None
    """Whether the driver counts the device but cannot open it: it fell off the bus, or waits for a reset."""
    age_s: float = 0.0
    """Seconds between this reading and its snapshot, if the driver did not answer in time; else 0."""

    @property
    def silent(self) -> bool:
        """Whether the device did not answer."""
        return self == DeviceReading()


class NicReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reading of a network interface."""

    carrier: bool | None = None
    errors: int | None = None
    """Counter of receive and transmit errors."""
    fell_off: bool = False
    """Whether its PCI function, not a virtual one, has left the bus."""


class DiskReading(msgspec.Struct, frozen=True, kw_only=True):
    """Size and free space of a file system."""

    total_bytes: int
    free_bytes: int
    """Free space for unprivileged users."""


class HostReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reading of the host."""

    memory_available_bytes: int | None = None
    memory_stall_s: float | None = None
    """Counter of seconds in which some task waited for memory (pressure stall information, "some")."""
    cpu_stall_s: float | None = None
    """Counter of seconds in which some task waited for a CPU."""
    oom_kills: int | None = None
    """Counter of processes killed by the kernel because memory ran out."""
    nics: dict[str, NicReading] = {}
    disks: dict[str, DiskReading] = {}
    """By mount point."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The readings of a node at one time."""

    time_s: float
    """Seconds since 1970."""
    devices: dict[int, DeviceReading]
    """By device id."""
    host: HostReading | None = None
