"""The quantities in a device's reading: names and units for Prometheus and for display."""

from __future__ import annotations

from dataclasses import dataclass

from ..machine.readings import DeviceReading


@dataclass(frozen=True)
class Quantity:
    """One field of a :class:`.DeviceReading`."""

    metric: str
    """Name in base units; counters end in _total."""
    description: str
    """Help text."""
    base: float = 1.0
    """Factor to the base unit."""
    unit: str | None = None
    """Unit for display, such as "GB used"; None: not printed."""
    factor: float = 1.0
    """Factor to ``unit``."""
    digits: int = 0
    """Number of decimals for display."""

    def number(self, value: float) -> str:
        """A reading's value in ``unit``, without its name."""
        return f"{value * self.factor:.{self.digits}f}"


QUANTITIES = {
    "temperature_c": Quantity("temperature_celsius", "Temperature of the chip", unit="C"),
    "memory_temperature_c": Quantity("memory_temperature_celsius", "Temperature of the memory"),
    "power_w": Quantity("power_watts", "Draw", unit="W"),
    "power_limit_w": Quantity("power_limit_watts", "Limit of the draw"),
    "utilization": Quantity(
        "utilization_ratio", "Share of the time that it computed", unit="% busy", factor=100
    ),
    "sm_clock_mhz": Quantity(
        "clock_hertz", "Clock of the multiprocessors, or of the fastest CPU core", base=1e6, unit="MHz"
    ),
    "memory_clock_mhz": Quantity("memory_clock_hertz", "Clock of the memory", base=1e6),
    "memory_used_bytes": Quantity(
        "memory_used_bytes", "Memory in use", unit="GB used", factor=1e-9, digits=1
    ),
    "energy_j": Quantity("energy_joules_total", "Energy used"),
    "ecc_corrected": Quantity("ecc_corrected_total", "Memory errors that were corrected"),
    "ecc_uncorrected": Quantity("ecc_uncorrected_total", "Memory errors that were not corrected"),
    "retired_pages": Quantity("retired_pages_total", "Memory pages or rows given up"),
    "nvlink_errors": Quantity("nvlink_errors_total", "Errors on NVLinks"),
    "pcie_replays": Quantity("pcie_replays_total", "PCIe replays"),
}
"""By field."""
SHOWN = {field: quantity for field, quantity in QUANTITIES.items() if quantity.unit is not None}
"""Quantities of :func:`reading_text`, in order."""


def reading_text(reading: DeviceReading) -> str:
    """A reading in one line, without unknown values."""
    parts = [
        f"{quantity.number(value)} {quantity.unit}"
        for field, quantity in SHOWN.items()
        if (value := getattr(reading, field)) is not None
    ]
    if reading.throttle_reasons:
        parts.append("slowed down: " + ", ".join(reading.throttle_reasons))
    if reading.ecc_uncorrected:
        parts.append(f"{reading.ecc_uncorrected} uncorrected memory errors")
    return ", ".join(parts) or "nothing can be read"
