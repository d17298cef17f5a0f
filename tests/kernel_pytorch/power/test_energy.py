"""Joules from counters in readings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor
from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.power.energy import EnergyMeter


def device(number: int, **facts: object) -> DeviceInfo:
    known = {"kind": "gpu", "index": number, "vendor": HardwareVendor.NVIDIA, **facts}
    return DeviceInfo(device_id=number, name="device", **known)


def readings(*counters: tuple[float, dict[int, float | None]]) -> Callable[[], Snapshot]:
    """Snapshots one after the other: time, and the counters by device id."""
    queue = [
        Snapshot(
            time_s=time_s, devices={n: DeviceReading(energy_j=joules) for n, joules in by_device.items()}
        )
        for time_s, by_device in counters
    ]
    return lambda: queue.pop(0)


def clock(*seconds: float) -> Callable[[], float]:
    return iter(seconds).__next__


def test_differences_of_counters() -> None:
    read = readings((10, {0: 1000, 1: 50}), (14, {0: 1600, 1: 250}))
    meter = EnergyMeter(read, [device(0), device(1)], clock=clock(3, 7))
    with meter:
        pass
    assert meter.joules == {0: 600, 1: 200}
    assert (meter.total_j, meter.seconds, meter.power_w, meter.reasons) == (800, 4, 200, {})


def test_it_may_be_entered_again() -> None:
    read = readings((0, {0: 1}), (1, {0: 6}), (5, {0: 9}), (7, {0: 13}))
    meter = EnergyMeter(read, [device(0)], clock=clock(0, 1, 5, 7))
    with meter:
        pass
    with meter:
        pass
    assert (meter.joules, meter.seconds, meter.power_w) == ({0: 4}, 2, 2)


def test_measured_though_the_block_raised() -> None:
    meter = EnergyMeter(readings((0, {0: 1}), (1, {0: 6})), [device(0)])
    with pytest.raises(ZeroDivisionError), meter:
        raise ZeroDivisionError
    assert meter.total_j == 5


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (None, 5, "no energy counter"),
        (5, None, "no energy counter"),
        (100, 40, "fell from 100 J to 40 J: it was reset or wrapped"),
        (100, 100, "stood still"),
    ],
)
def test_what_is_not_measured_is_none_and_tells_why(
    before: float | None, after: float | None, reason: str
) -> None:
    meter = EnergyMeter(readings((0, {0: before, 1: 0}), (1, {0: after, 1: 9})), [device(0), device(1)])
    with meter:
        pass
    assert meter.joules == {0: None, 1: 9}
    assert reason in meter.reasons[0]
    assert (meter.total_j, meter.power_w) == (None, None)  # a part is not the total


def test_the_clock_is_set_back_meanwhile() -> None:
    meter = EnergyMeter(readings((100, {0: 1}), (0, {0: 21})), [device(0)], clock=clock(5, 7))
    with meter:
        pass
    assert (meter.joules, meter.seconds, meter.power_w) == ({0: 20}, 2, 10)


@pytest.mark.parametrize("ages_s", [(0.0, 2.5), (2.5, 0.0)], ids=["after", "before"])
def test_a_reading_that_is_late_measures_nothing(ages_s: tuple[float, float]) -> None:
    """Its counter is that of earlier: a part of the block would be missing, or added."""
    late = iter(
        Snapshot(
            time_s=10,
            devices={0: DeviceReading(energy_j=joules, age_s=age_s), 1: DeviceReading(energy_j=joules)},
        )
        for joules, age_s in zip((1000, 1600), ages_s, strict=True)
    )
    meter = EnergyMeter(late.__next__, [device(0), device(1)])
    with meter:
        pass
    assert meter.joules == {0: None, 1: 600}
    assert meter.reasons == {0: "the driver answered late: its last reading was 2.5 s old"}


def test_a_device_that_is_not_read() -> None:
    meter = EnergyMeter(readings((0, {}), (1, {})), [device(0)])
    with meter:
        pass
    assert (meter.joules, meter.total_j) == ({0: None}, None)


def test_a_reading_that_fails_is_a_reason_and_does_not_hide_what_the_block_raised() -> None:
    snapshots = [Snapshot(time_s=0, devices={0: DeviceReading(energy_j=1)})]
    meter = EnergyMeter(snapshots.pop, [device(0)], clock=clock(0, 1, 5, 7))
    with pytest.raises(ZeroDivisionError), meter:
        raise ZeroDivisionError
    assert (meter.joules, meter.total_j, meter.seconds) == ({0: None}, None, None)
    assert meter.reasons == {0: "no reading: IndexError('pop from empty list')"}
    snapshots += [Snapshot(time_s=5, devices={0: DeviceReading(energy_j=9)})] * 2
    snapshots[0] = Snapshot(time_s=7, devices={0: DeviceReading(energy_j=13)})
    with meter:
        pass
    assert (meter.joules, meter.reasons, meter.power_w) == ({0: 4}, {}, 2)


def test_no_devices_no_joules() -> None:
    meter = EnergyMeter(readings((0, {0: 1}), (1, {0: 2})), [])
    with meter:
        pass
    assert (meter.joules, meter.total_j, meter.power_w) == ({}, None, None)
