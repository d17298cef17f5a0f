"""Which values are possible: one table for all vendors' drivers, the host and recorded readings.

Drivers may return garbage and report success: all ones for a missing sensor, an error code as a temperature,
text instead of a number. Impossible values become unknown, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import msgspec

from .facts import DeviceInfo, MigInstance, Missing, PciLink
from .known import total
from .readings import DeviceReading

Notes = dict[tuple[str, str], Missing]
"""Notes by device and quantity, each with the first impossible value."""

_POSITIVE = math.nextafter(0, 1)
_COUNT = (0, (1 << 64) - 1)
# Silicon is qualified for at most 150 C (AEC-Q100, grade 0), and accelerators shut down below 120. Their
# sensors are unsigned: a negative value is an error code.
_TEMPERATURE_C = (0, 150)
# The largest accelerators draw 1.4 kW (NVIDIA B300); the largest power limit in RAPL is 4 kW (15 bits).
_POWER_W = (0, 10_000)
_POWER_LIMIT_W = (_POSITIVE, 10_000)
# No chip reaches 10 GHz. GDDR7 is specified up to 48 Gbit/s, 24 GHz in NVML; 65535 is all ones.
_CLOCK_MHZ = (0, 10_000)
_MEMORY_CLOCK_MHZ = (0, 50_000)
_MAX_BYTES = 1 << 52  # physical addresses of x86-64 and AArch64 have 52 bits

_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature_c": _TEMPERATURE_C,
    "memory_temperature_c": _TEMPERATURE_C,
    "slowdown_temperature_c": (1, 150),
    "power_w": _POWER_W,
    "power_limit_w": _POWER_LIMIT_W,
    "power_limit_min_w": _POWER_W,
    "power_limit_max_w": _POWER_LIMIT_W,
    "age_s": (0, 1e6),  # readings older than a few seconds are dropped
    "utilization": (0, 1),
    "memory_bytes": (1, _MAX_BYTES),
    "memory_used_bytes": (0, _MAX_BYTES),
    "sm_clock_mhz": _CLOCK_MHZ,
    "base_clock_mhz": _CLOCK_MHZ,
    "boost_clock_mhz": _CLOCK_MHZ,
    "memory_clock_mhz": _MEMORY_CLOCK_MHZ,
    "energy_j": (0, 6.3e12),  # 10 kW for 20 years
    "ecc_corrected": _COUNT,
    "ecc_uncorrected": _COUNT,
    "retired_pages": _COUNT,
    "nvlink_errors": _COUNT,
    "pcie_replays": _COUNT,
    "throttle_bits": _COUNT,
    "compute_units": (1, 65_534),  # real ones have some hundreds; 65535 is all ones
    "generation": (1, 8),  # PCI-SIG has announced 8.0
    "generation_max": (1, 8),
    "width": (1, 32),  # PCI Express Base Specification: x32 is the widest
    "width_max": (1, 32),
    "nvlink_gb_s": (_POSITIVE, 1_000),  # one link in one direction; NVLink 6 has 100
    "speed_gbit_s": (_POSITIVE, 10_000),  # a network interface; IEEE 802.3dj has 1600
}
"""The smallest and the largest possible value by quantity."""
_FLAGS = {"lost", "remap_failed", "remap_pending", "mig_enabled", "ecc_enabled", "persistence_mode"}
_TUPLES = {"throttle_reasons": str, "xids": int}
_NUMBERS = {int, float}  # not bool
_ALL_ONES = {(1 << 32) - 1, (1 << 64) - 1}
# All ones after conversion: NVML counts millijoules; sysfs gives 65535 Mbit/s for an unknown speed.
_SCALED_ONES = {"energy_j": ((1 << 32) - 1) * 1e-3, "speed_gbit_s": ((1 << 16) - 1) / 1000}
# A card may draw three times its rated power for 100 microseconds (PCI Express CEM 5.1). CPU packages are
# exempt: their power limit is a long-term mean, which laptops exceed fourfold for seconds.
_MAX_OF_POWER_LIMIT = 3

_READ = [field.name for field in msgspec.structs.fields(DeviceReading)]
_UNKNOWN = dict(zip(_READ, msgspec.structs.astuple(DeviceReading()), strict=True))
_Facts = TypeVar("_Facts", DeviceInfo, PciLink, MigInstance)


def is_possible(quantity: str, value: Any) -> bool:
    """Whether ``quantity`` can have this value. None is possible, and so is any value without bounds."""
    if value is None:
        return True
    bounds = _BOUNDS.get(quantity)
    if bounds is not None:
        return (
            type(value) in _NUMBERS
            and bounds[0] <= value <= bounds[1]
            and value not in _ALL_ONES
            and value != _SCALED_ONES.get(quantity)
        )
    if quantity in _FLAGS:
        return type(value) is bool
    if quantity in _TUPLES:
        return type(value) is tuple and all(type(item) is _TUPLES[quantity] for item in value)
    return True


def sum_of_counters(counters: Iterable[Any]) -> Any:
    """The sum; None if any counter is unknown. An impossible counter is returned instead: a sum hides it."""
    found = list(counters)
    impossible = [counter for counter in found if not is_possible("ecc_corrected", counter)]
    return impossible[0] if impossible else total(found)


def possible_readings(
    readings: Mapping[int, DeviceReading], devices: Mapping[int, DeviceInfo], notes: Notes
) -> dict[int, DeviceReading]:
    """The readings, with impossible values set to unknown.

    Args:
        readings: by device id.
        devices: by device id. Their power limits and memory sizes bound the readings too.
        notes: receives a note for each impossible value.
    """
    return {id: _reading(id, reading, devices.get(id), notes) for id, reading in readings.items()}


def possible_facts(device: DeviceInfo, notes: Notes) -> DeviceInfo:
    """The device, its PCI link, MIG instances and reading, with impossible values set to unknown.

    Args:
        notes: receives a note for each impossible value.
    """
    label = device.label
    device = _facts(label, device, notes)
    return replace(
        device,
        pci=device.pci and _facts(label, device.pci, notes),
        mig_instances=tuple(_facts(f"{label} {mig.uuid}", mig, notes) for mig in device.mig_instances),
        reading=_reading(device.device_id, device.reading, device, notes),
    )


def _facts(label: str, facts: _Facts, notes: Notes) -> _Facts:
    values = {field.name: getattr(facts, field.name) for field in fields(facts)}
    refused = {name: value for name, value in values.items() if not is_possible(name, value)}
    _note(notes, label, refused)
    unknown: dict[str, Any] = dict.fromkeys(refused)
    return replace(facts, **unknown)


def _reading(id: int, reading: DeviceReading, device: DeviceInfo | None, notes: Notes) -> DeviceReading:
    values = zip(_READ, msgspec.structs.astuple(reading), strict=True)
    refused = {name: value for name, value in values if value is not None and not is_possible(name, value)}
    if device is not None:
        if device.kind == "gpu" and reading.power_w is not None and "power_w" not in refused:
            power_limits_w = [device.power_limit_w, device.power_limit_max_w]
            power_limits_w += [] if "power_limit_w" in refused else [reading.power_limit_w]
            highest_w = max((limit for limit in power_limits_w if limit is not None), default=math.inf)
            if reading.power_w > _MAX_OF_POWER_LIMIT * highest_w:
                refused["power_w"] = reading.power_w
        used, total = reading.memory_used_bytes, device.memory_bytes
        if used is not None and total is not None and "memory_used_bytes" not in refused and used > total:
            refused["memory_used_bytes"] = used
    if not refused:
        return reading
    _note(notes, f"device {id}" if device is None else device.label, refused)
    return msgspec.structs.replace(reading, **{name: _UNKNOWN[name] for name in refused})


def _note(notes: Notes, label: str, refused: Mapping[str, object]) -> None:
    for quantity, value in refused.items():
        if (label, quantity) not in notes:
            why = f"{value!r:.40} is not a possible value"
            notes[label, quantity] = Missing(what=f"{label}: {quantity}", why=why)
