from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
import topologies

from kernel_pytorch.distributed_scale.fault_tolerance import HardwareHealthMonitor
from kernel_pytorch.distributed_scale.hardware_discovery import HardwareTopologyManager
from kernel_pytorch.machine.readings import DeviceReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.health import HealthState
from kernel_pytorch.watch.telemetry import EndOfTrace

SOON_S = 30.0
FINE = DeviceReading(temperature_c=50.0, utilization=0.9, power_w=600.0, ecc_uncorrected=0)
BROKEN = DeviceReading(temperature_c=60.0, utilization=0.7, power_w=500.0, ecc_uncorrected=1)
HOT = DeviceReading(temperature_c=90.0, utilization=0.9, power_w=600.0, ecc_uncorrected=0)


class Play:
    """A source of snapshots, one a second from 1000 s on, then the end of the trace."""

    def __init__(self, devices: Iterable[dict[int, DeviceReading]]) -> None:
        self._snapshots = (
            Snapshot(
                time_s=1000.0 + number,
                devices=readings,
                host=HostReading(nics={"eth0": NicReading(carrier=True, errors=0)}),
            )
            for number, readings in enumerate(devices)
        )

    def read(self) -> Snapshot:
        for snapshot in self._snapshots:
            return snapshot
        raise EndOfTrace("over")


def play(*devices: dict[int, DeviceReading]) -> HardwareTopologyManager:
    """A manager of a DGX H100 with these readings, one a question."""
    manager = HardwareTopologyManager(False, topology=topologies.dgx_h100(), source=Play(devices))
    manager.telemetry.interval_s = 1e-4
    return manager


def everywhere(reading: DeviceReading, **others: DeviceReading) -> dict[int, DeviceReading]:
    return dict.fromkeys(range(8), reading) | {int(name[1:]): reading for name, reading in others.items()}


def watched(manager: HardwareTopologyManager, count: int) -> threading.Event:
    """Set once the telemetry has told of ``count`` snapshots."""
    done, seen = threading.Event(), iter(range(1, count + 1))
    manager.telemetry.listeners.append(lambda _: done.set() if next(seen, count) == count else None)
    return done


def test_the_whole_machine():
    manager = play(everywhere(FINE), {**everywhere(FINE, _3=BROKEN), 5: DeviceReading()})
    monitor = HardwareHealthMonitor(manager, enable_monitoring=False)
    first, second = monitor.get_device_health_status(), monitor.get_device_health_status()
    assert first["healthy_devices"] == first["total_devices"] == 8
    assert second | {"components": None} == {
        "timestamp": 1001.0,
        "total_devices": 8,
        "healthy_devices": 7,
        "degraded_devices": 0,
        "failed_devices": 1,
        "unknown_devices": 0,
        "device_details": dict.fromkeys(range(8), "healthy") | {3: "failed"},
        "components": None,
        "error": None,
    }
    components = second["components"]
    assert components.keys() == {*(f"gpu:{number}" for number in range(8)), "memory", "cpu", "nic:eth0"}
    assert components["nic:eth0"]["status"] == "healthy"
    assert (components["cpu"]["status"], components["cpu"]["reason"]) == (
        None,
        "no readings of the pressure that cover 30 s",
    )


def test_one_device():
    monitor = HardwareHealthMonitor(play(everywhere(FINE), everywhere(FINE, _3=BROKEN)), False)
    monitor.get_device_health_status()
    status = monitor.get_device_health_status(3)
    assert (status["device_id"], status["status"], status["last_check"]) == (3, "failed", 1001.0)
    assert status["evidence"] == [
        {
            "kind": "ecc_uncorrected",
            "state": "failed",
            "value": 1.0,
            "threshold": 1.0,
            "since_s": 1001.0,
            "text": "1 memory errors that could not be corrected (from 1 on)",
        }
    ]
    assert "throttling" in status["unchecked"]
    assert status["reason"] is None


def test_states_are_for_placement():
    monitor = HardwareHealthMonitor(play({0: FINE}, {0: BROKEN}), False)
    assert monitor.states == {0: HealthState.HEALTHY} | dict.fromkeys(range(1, 8))
    assert monitor.states[0] is HealthState.FAILED
    assert monitor.get_device_health_status(7)["reason"] == "it has not answered so far"


def test_it_watches_until_it_is_stopped():
    manager = play(*[everywhere(FINE)] * 3, *[everywhere(BROKEN)] * 10**4)
    done, before = watched(manager, 10), set(threading.enumerate())
    monitor = HardwareHealthMonitor(manager)
    assert manager.telemetry.running
    assert done.wait(SOON_S)
    monitor.stop_monitoring()
    assert not manager.telemetry.running
    assert {thread for thread in threading.enumerate() if thread.name == "telemetry"} <= before
    told = len(manager.telemetry.history)
    assert set(monitor.states.values()) == {HealthState.FAILED}
    assert len(manager.telemetry.history) == told + 1  # without a thread, a question takes a reading
    monitor.stop_monitoring()


def test_a_thread_of_the_manager_goes_on():
    manager = play(*[everywhere(FINE)] * 10**5)
    manager.telemetry.start()
    monitor = HardwareHealthMonitor(manager)
    monitor.stop_monitoring()
    assert manager.telemetry.running
    manager.shutdown()
    assert not manager.telemetry.running


def test_it_starts_again():
    manager = play(*[everywhere(FINE)] * 10**5)
    monitor = HardwareHealthMonitor(manager)
    for _ in range(3):
        monitor.start_monitoring()
        done = watched(manager, 2)
        assert done.wait(SOON_S)
        manager.telemetry.listeners.pop()
        monitor.stop_monitoring()
        assert not manager.telemetry.running


def test_what_was_seen_stays_after_the_end_of_a_trace():
    manager = play(everywhere(FINE), everywhere(BROKEN))
    monitor = HardwareHealthMonitor(manager, False)
    for _ in range(5):
        status = monitor.get_device_health_status()
    assert (status["failed_devices"], status["timestamp"]) == (8, 1001.0)


def test_why_sampling_fails_is_told():
    class Broken:
        def read(self) -> Snapshot:
            raise OSError("the driver went away")

    manager = HardwareTopologyManager(False, topology=topologies.dgx_h100(), source=Broken())
    monitor = HardwareHealthMonitor(manager, False)
    with pytest.raises(OSError, match="the driver went away"):
        monitor.get_device_health_status()


def test_a_reset():
    manager = play(everywhere(FINE), everywhere(FINE, _3=BROKEN), everywhere(FINE, _3=BROKEN))
    monitor = HardwareHealthMonitor(manager, False)
    assert [monitor.get_device_health_status(3)["status"] for _ in range(2)] == ["healthy", "failed"]
    monitor.reset_device_health(3)
    assert monitor.get_device_health_status(3)["status"] == "healthy"
    assert monitor.get_device_health_status(3)["evidence"] == []


def test_thresholds():
    monitor = HardwareHealthMonitor(play(*[everywhere(HOT)] * 100), False)
    monitor.set_error_thresholds(temperature=95, temperature_sustained_s=2)
    assert (monitor.thresholds.temperature_c, monitor.thresholds.temperature_sustained_s) == (95, 2)
    for _ in range(5):
        assert monitor.get_device_health_status(0)["status"] == "healthy"
    monitor.set_error_thresholds(temperature_c=80)
    for _ in range(3):
        status = monitor.get_device_health_status(0)
    assert (status["status"], status["evidence"][0]["kind"]) == ("degraded", "temperature")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperatur": 80}, "no threshold temperatur; there are temperature_c, .*, carrier_lost_s"),
        ({"temperature": -1}, "temperature_c must be positive, got -1"),
        ({"temperature": 80, "temperature_c": 80}, "older name of temperature_c: give one of them"),
    ],
)
def test_bad_thresholds_of_the_monitor(given: dict[str, Any], message: str):
    monitor = HardwareHealthMonitor(play(), False)
    before = monitor.thresholds
    with pytest.raises(ValueError, match=message):
        monitor.set_error_thresholds(**given)
    assert monitor.thresholds == before


def test_unknown_devices():
    monitor = HardwareHealthMonitor(play(everywhere(FINE)), False)
    for question in (
        monitor.get_device_health_status,
        monitor.get_performance_report,
        monitor.reset_device_health,
    ):
        with pytest.raises(ValueError, match=r"device_id must be one of \[0, 1, .*7\], got 8"):
            question(8)


def test_performance():
    readings = [
        {0: DeviceReading(temperature_c=50.0 + second / 60, power_w=None if second % 2 else 400.0 + second)}
        for second in range(601)
    ]
    manager = play(*readings)
    for _ in range(600):
        manager.telemetry.sample()
    monitor = HardwareHealthMonitor(manager, False)
    report = monitor.get_performance_report(0, hours=1)
    assert report == {
        "device_id": 0,
        "avg_temperature_c": pytest.approx(55),
        "max_temperature_c": 60.0,
        "avg_utilization": None,
        "max_utilization": None,
        "avg_power_w": pytest.approx(700),
        "max_power_w": 1000.0,
        "temperature_trend_c_per_hour": pytest.approx(60),
        "samples": 601,
        "covered_s": 600.0,
        "health_status": "healthy",
    }
    short = monitor.get_performance_report(0, hours=1 / 60)
    assert (short["samples"], short["covered_s"], short["avg_temperature_c"]) == (61, 60, pytest.approx(59.5))
    everything = monitor.get_performance_report(hours=1)
    assert everything["devices"].keys() == set(range(8))
    assert everything["devices"][0] == report
    assert everything["devices"][5]["avg_temperature_c"] is None
    assert everything["devices"][5]["health_status"] is None
    with pytest.raises(ValueError, match="hours must be positive, got 0"):
        monitor.get_performance_report(hours=0)


def test_no_history_no_figures():
    monitor = HardwareHealthMonitor(play(), False)
    report = monitor.get_performance_report(2)
    assert (report["samples"], report["covered_s"], report["temperature_trend_c_per_hour"]) == (0, None, None)


def test_two_points_make_no_trend():
    manager = play(*[{0: DeviceReading(temperature_c=50.0 + number)} for number in range(3)])
    monitor = HardwareHealthMonitor(manager, False)
    trends = [monitor.get_performance_report(0)["temperature_trend_c_per_hour"] for _ in range(3)]
    assert trends == [None, None, pytest.approx(3600)]


def test_a_node_among_others():
    manager = play(everywhere(FINE, _3=BROKEN), everywhere(FINE, _3=BROKEN))
    monitor = HardwareHealthMonitor(manager, False)
    monitor.set_error_thresholds(temperature=70)
    assert monitor.get_device_health_status()["total_devices"] == 8
    manager.view.topology = topologies.cluster(*(topologies.dgx_h100_node(n, first=8 * n) for n in (0, 1)))
    manager.view.first_id = 8
    status = monitor.get_device_health_status()
    assert (status["total_devices"], status["healthy_devices"], status["unknown_devices"]) == (16, 7, 8)
    assert [number for number, state in status["device_details"].items() if state == "failed"] == [11]
    assert status["components"]["gpu:11"]["status"] == "failed"
    assert "gpu:3" not in status["components"]
    assert {number for number, state in monitor.states.items() if state is HealthState.FAILED} == {11}
    other = monitor.get_device_health_status(0)
    assert (other["status"], other["reason"]) == (None, "it is in another node, which watches it itself")
    assert monitor.get_performance_report(0)["samples"] == 0
    assert monitor.get_performance_report(11)["samples"] == 2
    assert monitor.thresholds.temperature_c == 70
    with pytest.raises(ValueError, match="device_id 0: it is in another node"):
        monitor.reset_device_health(0)
    monitor.reset_device_health(11)


def test_two_monitors_share_one_watch():
    manager = play(*[everywhere(FINE)] * 10**5)
    first, second = HardwareHealthMonitor(manager), HardwareHealthMonitor(manager)
    first.set_error_thresholds(temperature=70)
    assert second.thresholds.temperature_c == 70
    first.stop_monitoring()
    assert manager.telemetry.running  # the second wants it
    second.stop_monitoring()
    assert not manager.telemetry.running


def test_a_source_that_does_not_return_is_no_reading():
    release = threading.Event()

    class Hangs(Play):
        def read(self) -> Snapshot:
            assert reads.popleft() or release.wait(SOON_S)
            return super().read()

    reads, clock = deque([True, False]), iter(range(0, 10**6, 100))
    manager = HardwareTopologyManager(
        False, topology=topologies.dgx_h100(), source=Hangs([everywhere(FINE)] * 9)
    )
    manager.telemetry._clock = lambda: float(next(clock))
    done = watched(manager, 1)
    manager.telemetry.start()
    try:
        assert done.wait(SOON_S)
        monitor = HardwareHealthMonitor(manager, False)
        status = monitor.get_device_health_status()
        assert status["unknown_devices"] == 8
        assert "no reading for" in status["components"]["gpu:0"]["reason"]
        assert set(manager.view.watch.now().devices) == set()
    finally:
        release.set()
        manager.shutdown()
