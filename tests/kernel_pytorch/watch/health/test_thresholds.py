"""Every threshold is the smallest value that counts: what has it counts, what is just below does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from faulty_traces import GPUS

from kernel_pytorch.machine.readings import DeviceReading, DiskReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.health import HealthState, Thresholds, assess

HEALTHY, DEGRADED, FAILED = HealthState.HEALTHY, HealthState.DEGRADED, HealthState.FAILED
LITTLE = 2.0**-20
THRESHOLDS = Thresholds(
    clock_loss_share=0.25,
    disk_full_share=0.5,
    disk_failed_share=0.75,
    memory_stall_share=0.25,
    pressure_window_s=32.0,
)
"""Powers of two where shares are computed: without rounding."""
CPU = replace(GPUS[0], kind="cpu")
Trace = list[Snapshot]


def gpu(*readings: tuple[float, DeviceReading]) -> Trace:
    """Of seconds and readings of every GPU."""
    return [Snapshot(time_s=t, devices=dict.fromkeys(range(8), reading)) for t, reading in readings]


def host(*readings: tuple[float, HostReading]) -> Trace:
    return [Snapshot(time_s=t, devices={}, host=reading) for t, reading in readings]


def nic(carrier: bool, errors: float = 0) -> HostReading:
    return HostReading(nics={"eth0": NicReading(carrier=carrier, errors=errors)})  # type: ignore[arg-type]


def lasting(reading: DeviceReading) -> Callable[[float], Trace]:
    return lambda seconds: gpu((0, reading), (seconds, reading))


def device_value(metric: str, for_s: float) -> Callable[[float], Trace]:
    return lambda value: lasting(DeviceReading(**{metric: value}))(for_s)  # type: ignore[arg-type]


def device_growth(counter: str) -> Callable[[float], Trace]:
    return lambda value: gpu(
        (0, DeviceReading(**{counter: 0})),  # type: ignore[arg-type]
        (1, DeviceReading(**{counter: value})),  # type: ignore[arg-type]
    )


def one_slow(loss: float, seconds: float, utilization: float) -> Trace:
    clocks = [1024 * (1 - loss), *[1024.0] * 7]
    devices = {
        number: DeviceReading(sm_clock_mhz=clock, utilization=utilization)
        for number, clock in enumerate(clocks)
    }
    return [Snapshot(time_s=t, devices=devices) for t in (0, seconds)]


def stalled(field: str) -> Callable[[float], Trace]:
    return lambda share: host(
        (0, HostReading(**{field: 0})),  # type: ignore[arg-type]
        (32, HostReading(**{field: 32 * share})),  # type: ignore[arg-type]
    )


def disk(used: float) -> Trace:
    total = 1 << 30
    reading = DiskReading(total_bytes=total, free_bytes=round(total * (1 - used)))
    return host((0, HostReading(disks={"/": reading})))


def all_stalled(seconds: float) -> Trace:
    return host((0, HostReading(memory_stall_s=0)), (seconds, HostReading(memory_stall_s=seconds)))


RULES: dict[str, tuple[str, str, HealthState, Callable[[float], Trace]]] = {
    "temperature_c": ("gpu:0", "temperature", DEGRADED, device_value("temperature_c", 30)),
    "cpu_temperature_c": ("cpu:0", "temperature", DEGRADED, device_value("temperature_c", 30)),
    "temperature_sustained_s": ("gpu:0", "temperature", DEGRADED, lasting(DeviceReading(temperature_c=99))),
    "memory_temperature_c": (
        *("gpu:0", "memory_temperature", DEGRADED),
        device_value("memory_temperature_c", 30),
    ),
    "throttle_sustained_s": (
        *("gpu:0", "throttling", DEGRADED),
        lasting(DeviceReading(throttle_reasons=("hw_thermal",))),
    ),
    "clock_loss_share": ("gpu:0", "clock_loss", DEGRADED, lambda loss: one_slow(loss, 30, 1)),
    "clock_loss_sustained_s": ("gpu:0", "clock_loss", DEGRADED, lambda seconds: one_slow(0.5, seconds, 1)),
    "load_share": ("gpu:0", "clock_loss", DEGRADED, lambda load: one_slow(0.5, 30, load)),
    "silent_s": (
        *("gpu:0", "silent", FAILED),
        lambda seconds: gpu((-1, DeviceReading(power_w=1)), (0, DeviceReading()), (seconds, DeviceReading())),
    ),
    "ecc_corrected_per_hour": ("gpu:0", "ecc_corrected", DEGRADED, device_growth("ecc_corrected")),
    "ecc_uncorrected": ("gpu:0", "ecc_uncorrected", FAILED, device_growth("ecc_uncorrected")),
    "retired_pages": ("gpu:0", "retired_pages", DEGRADED, device_growth("retired_pages")),
    "nvlink_errors_per_minute": ("gpu:0", "nvlink_errors", DEGRADED, device_growth("nvlink_errors")),
    "pcie_replays_per_minute": ("gpu:0", "pcie_replays", DEGRADED, device_growth("pcie_replays")),
    "memory_stall_share": ("memory", "memory_pressure", DEGRADED, stalled("memory_stall_s")),
    "cpu_stall_share": ("cpu", "cpu_pressure", HEALTHY, stalled("cpu_stall_s")),
    "pressure_window_s": ("memory", "memory_pressure", DEGRADED, all_stalled),
    "oom_kills_per_hour": (
        *("memory", "oom_kills", DEGRADED),
        lambda kills: host((0, HostReading(oom_kills=0)), (1, HostReading(oom_kills=kills))),  # type: ignore[arg-type]
    ),
    "disk_full_share": ("disk:/", "disk_full", DEGRADED, disk),
    "disk_failed_share": ("disk:/", "disk_full", FAILED, disk),
    "nic_errors_per_minute": (
        *("nic:eth0", "nic_errors", DEGRADED),
        lambda errors: host((0, nic(True)), (1, nic(True, errors))),
    ),
    "carrier_lost_s": (
        *("nic:eth0", "carrier_lost", FAILED),
        lambda seconds: host((-1, nic(True)), (0, nic(False)), (seconds, nic(False))),
    ),
}


def found(trace: Sequence[Snapshot], component: str) -> set[tuple[str, HealthState]]:
    devices = [CPU] if component == "cpu:0" else GPUS
    return {(item.kind, item.state) for item in assess(trace, devices, THRESHOLDS)[component].evidence}


def test_every_threshold_has_a_rule_here():
    assert RULES.keys() == set(Thresholds.names())


@pytest.mark.parametrize("name", Thresholds.names())
def test_a_threshold_is_the_smallest_value_that_counts(name: str):
    component, kind, state, trace = RULES[name]
    threshold = getattr(THRESHOLDS, name)
    assert found(trace(threshold), component) == {(kind, state)}
    assert (kind, state) not in found(trace(threshold - LITTLE), component)


def test_the_default_thresholds():
    assert Thresholds() == Thresholds(
        temperature_c=85,
        cpu_temperature_c=95,
        temperature_sustained_s=30,
        memory_temperature_c=95,
        throttle_sustained_s=30,
        clock_loss_share=0.15,
        clock_loss_sustained_s=30,
        load_share=0.5,
        silent_s=5,
        ecc_corrected_per_hour=100,
        ecc_uncorrected=1,
        retired_pages=1,
        nvlink_errors_per_minute=100,
        pcie_replays_per_minute=9,
        memory_stall_share=0.1,
        cpu_stall_share=0.5,
        pressure_window_s=30,
        oom_kills_per_hour=1,
        disk_full_share=0.9,
        disk_failed_share=0.98,
        nic_errors_per_minute=60,
        carrier_lost_s=5,
    )
