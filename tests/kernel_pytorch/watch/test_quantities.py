"""The one table of names and units of a reading."""

from __future__ import annotations

from kernel_pytorch.machine.readings import DeviceReading
from kernel_pytorch.watch.history import METRICS
from kernel_pytorch.watch.quantities import QUANTITIES, reading_text


def test_every_number_of_a_reading_is_in_it():
    """But truth values, which the health tells."""
    assert set(METRICS) - set(QUANTITIES) == {"lost", "remap_failed", "remap_pending"}
    assert len({quantity.metric for quantity in QUANTITIES.values()}) == len(QUANTITIES)


def test_readings():
    reading = DeviceReading(
        temperature_c=0,
        power_w=123.4,
        utilization=0.5,
        sm_clock_mhz=1980,
        memory_used_bytes=1500000000,
        throttle_reasons=("power_cap", "hw_thermal"),
        ecc_uncorrected=2,
    )
    assert reading_text(reading) == (
        "0 C, 123 W, 50 % busy, 1980 MHz, 1.5 GB used, slowed down: power_cap, hw_thermal, "
        "2 uncorrected memory errors"
    )
    assert reading_text(DeviceReading(throttle_reasons=(), ecc_uncorrected=0)) == "nothing can be read"
