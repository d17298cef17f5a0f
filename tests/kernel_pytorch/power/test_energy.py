"""Joules from counters in readings, and from a stand-in for Zeus where there are none."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

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


@pytest.fixture(autouse=True)
def _no_zeus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)


def test_differences_of_counters() -> None:
    meter = EnergyMeter(readings((10, {0: 1000, 1: 50}), (14, {0: 1600, 1: 250})), [device(0), device(1)])
    with meter:
        pass
    assert meter.joules == {0: 600, 1: 200}
    assert (meter.total_j, meter.seconds, meter.power_w, meter.reasons) == (800, 4, 200, {})


def test_it_may_be_entered_again() -> None:
    meter = EnergyMeter(readings((0, {0: 1}), (1, {0: 6}), (5, {0: 9}), (7, {0: 13})), [device(0)])
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


def test_a_device_that_is_not_read() -> None:
    meter = EnergyMeter(readings((0, {}), (1, {})), [device(0)])
    with meter:
        pass
    assert (meter.joules, meter.total_j) == ({0: None}, None)


def test_a_reading_that_fails_is_a_reason_and_does_not_hide_what_the_block_raised() -> None:
    snapshots = [Snapshot(time_s=0, devices={0: DeviceReading(energy_j=1)})]
    meter = EnergyMeter(snapshots.pop, [device(0)])
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


class FakeZeusMonitor:
    """As Zeus's: joules by its own indices; warns where it measures 0 J."""

    used: dict[str, float]
    made: list[tuple[list[int], list[int]]]

    def __init__(self, gpu_indices: list[int], cpu_indices: list[int]) -> None:
        self.made.append((gpu_indices, cpu_indices))
        self._gpus, self._cpus, self._windows = gpu_indices, cpu_indices, set()

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        if key in self._windows:
            raise ValueError(f"Measurement window '{key}' already exists")
        assert not sync_execution
        self._windows.add(key)

    def end_window(self, key: str, sync_execution: bool = True) -> SimpleNamespace:
        self._windows.remove(key)
        gpus = {index: self.used[f"gpu {index}"] for index in self._gpus}
        if 0.0 in gpus.values():
            warnings.warn("The energy consumption of one or more GPUs was measured as zero.", stacklevel=1)
        return SimpleNamespace(
            time=1.0,
            gpu_energy=gpus,
            cpu_energy={index: self.used[f"cpu {index}"] for index in self._cpus} or None,
        )


class FakeZeusInitError(Exception):
    pass


@pytest.fixture
def zeus(_no_zeus: None, monkeypatch: pytest.MonkeyPatch) -> type[FakeZeusMonitor]:
    """Zeus that sees the GPUs 2 and 0 of the driver, by CUDA_VISIBLE_DEVICES=2,0."""

    class Monitor(FakeZeusMonitor):
        pass

    Monitor.used = {"gpu 0": 12.0, "gpu 1": 34.0, "cpu 0": 5.0, "cpu 1": 6.0}
    Monitor.made = []
    modules = {name: ModuleType(name) for name in ("zeus", "zeus.device", "zeus.monitor")}
    gpus = [SimpleNamespace(gpu_index=2), SimpleNamespace(gpu_index=0)]
    modules["zeus.device"].get_gpus = lambda: SimpleNamespace(gpus=gpus)
    modules["zeus.monitor"].ZeusMonitor = Monitor
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return Monitor


def test_zeus_measures_what_has_no_counter(zeus: type[FakeZeusMonitor]) -> None:
    devices = [device(0), device(1), device(2), device(3, kind="cpu", index=1, vendor=HardwareVendor.INTEL)]
    meter = EnergyMeter(readings((0, {0: 10}), (2, {0: 11}), (3, {0: 11}), (4, {0: 15})), devices)
    with meter:
        pass
    assert meter.joules == {0: 1, 1: None, 2: 12.0, 3: 6.0}
    assert zeus.made == [([0], [1])]
    assert set(meter.reasons) == {1}  # the driver's GPU 1 is hidden from Zeus
    with meter:
        pass
    assert meter.joules == {0: 4, 1: None, 2: 12.0, 3: 6.0}
    assert len(zeus.made) == 1  # each monitor may start a process


def test_zeus_is_left_alone_where_counters_do(zeus: type[FakeZeusMonitor]) -> None:
    meter = EnergyMeter(readings((0, {0: 10}), (2, {0: 11})), [device(0)])
    with meter:
        pass
    assert meter.joules == {0: 1}
    assert zeus.made == []


def test_zeus_that_measures_nothing(zeus: type[FakeZeusMonitor]) -> None:
    zeus.used["gpu 1"] = 0.0
    meter = EnergyMeter(readings((0, {}), (2, {})), [device(0)])
    with meter:
        pass
    assert meter.joules == {0: None}
    assert meter.reasons == {0: "Zeus measured nothing in this block"}


def test_zeus_that_does_not_start(zeus: type[FakeZeusMonitor]) -> None:
    def fail() -> None:
        raise FakeZeusInitError("CUDA_VISIBLE_DEVICES is set to an empty string.")

    sys.modules["zeus.device"].get_gpus = fail
    meter = EnergyMeter(readings((0, {}), (2, {})), [device(0)])
    with meter:
        pass
    assert meter.joules == {0: None}
    assert meter.reasons == {0: "Zeus: CUDA_VISIBLE_DEVICES is set to an empty string."}


@pytest.mark.parametrize("method", ["begin_window", "end_window"])
def test_zeus_that_fails_later_does_not_stop_the_work(
    zeus: type[FakeZeusMonitor], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(self: FakeZeusMonitor, key: str, sync_execution: bool) -> None:
        raise FakeZeusInitError("GPU is lost")

    monkeypatch.setattr(zeus, method, fail)
    meter = EnergyMeter(readings((0, {}), (2, {}), (3, {}), (4, {})), [device(0)])
    for _ in range(2):
        with meter:
            pass
        assert (meter.joules, meter.reasons) == ({0: None}, {0: "Zeus: GPU is lost"})
