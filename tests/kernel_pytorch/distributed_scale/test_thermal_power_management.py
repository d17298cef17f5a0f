"""Scheduler and optimizer over a real telemetry that is fed listed snapshots."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import fake_power_nvml
import pytest
from fake_power_nvml import FakePowerNvml
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.distributed_scale.hardware_discovery import HardwareTopologyManager
from kernel_pytorch.distributed_scale.thermal_power_management import (
    PowerEfficiencyOptimizer,
    ThermalAwareScheduler,
    create_thermal_scheduler,
)
from kernel_pytorch.machine.facts import (
    ClusterTopology,
    DeviceInfo,
    HardwareVendor,
    Limits,
    NodeTopology,
)
from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.power import planner
from kernel_pytorch.power.energy import EnergyMeter
from kernel_pytorch.watch.telemetry import EndOfTrace


class Listed:
    """A source of snapshots: one after the other, and then the end of the trace."""

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        self._snapshots = iter(snapshots)

    def read(self) -> Snapshot:
        try:
            return next(self._snapshots)
        except StopIteration:
            raise EndOfTrace from None


def reading(temperature_c: float | None = 50, **known: object) -> DeviceReading:
    facts = {"power_w": 60.0, "power_limit_w": 400.0, "throttle_reasons": (), **known}
    return DeviceReading(temperature_c=temperature_c, **facts)


UNKNOWN = DeviceReading()


def hardware(*rows: list[DeviceReading], **facts: object) -> HardwareTopologyManager:
    """As many devices as the rows are wide; each row is a snapshot, 10 s after the one before."""
    width = len(rows[0])
    known = {"kind": "gpu", "vendor": HardwareVendor.NVIDIA, "name": "NVIDIA A100", **facts}
    devices = tuple(DeviceInfo(device_id=n, index=n, uuid=f"GPU-{n}", **known) for n in range(width))
    node = NodeTopology(
        node_id=0,
        hostname="node",
        boot_id=None,
        network_namespace=None,
        packages=(),
        caches=(),
        numa_nodes=(),
        memory_bytes=None,
        limits=Limits(cpus=(0,), cpu_quota=None, memory_bytes=None),
        devices=devices,
    )
    snapshots = [
        Snapshot(time_s=1000 + 10.0 * second, devices=dict(enumerate(row))) for second, row in enumerate(rows)
    ]
    return HardwareTopologyManager(False, topology=ClusterTopology(nodes={0: node}), source=Listed(snapshots))


def test_the_coolest_devices_until_they_are_released() -> None:
    scheduler = create_thermal_scheduler(hardware([reading(70), reading(50), reading(60), reading(86)]))
    first = scheduler.schedule_job("a", 2)
    assert (first["success"], first["devices"], first["estimated_power"]) == (True, [1, 2], 600.0)
    assert first["reasons"][3] == "86 C reaches the threshold of 85 C"
    assert "error" not in first
    assert scheduler.schedule_job("b", 1)["devices"] == [0]
    refused = scheduler.schedule_job("c", 1)
    assert (refused["success"], refused["devices"], refused["estimated_power"]) == (False, [], None)
    assert refused["error"] == (
        "num_devices must be at most 0 here, got 1: of 4 devices 0 fit; "
        "left out: gpu:0-2 taken; left out: gpu:3 too hot"
    )
    assert scheduler.release_job("a") is True
    assert scheduler.release_job("a") is False
    assert scheduler.schedule_job("c", 1)["devices"] == [1]


def test_a_job_that_has_devices_gets_no_others() -> None:
    scheduler = create_thermal_scheduler(hardware([reading(), reading()]))
    scheduler.schedule_job("a", 1)
    again = scheduler.schedule_job("a", 1)
    assert again["success"] is False
    assert again["error"] == "job 'a' has devices [0] already: release it first"
    assert scheduler.get_thermal_report()["jobs"] == {"a": [0]}


def test_a_refusal_does_not_take_devices() -> None:
    scheduler = create_thermal_scheduler(hardware([reading(), reading()]), power_budget_w=500)
    assert scheduler.schedule_job("a", 2)["error"].startswith("power budget of 500 W: 2 devices at 300 W")
    accepted = scheduler.schedule_job("a", 1)
    assert (accepted["devices"], accepted["committed_power_w"]) == ([0], 360)


def test_each_decision_takes_a_reading() -> None:
    scheduler = create_thermal_scheduler(hardware([reading(40), reading(50)], [reading(90), reading(50)]))
    scheduler.monitor_thermal_state()
    assert scheduler.schedule_job("a", 1)["devices"] == [1]


def test_trend_and_hysteresis_come_from_the_history() -> None:
    rows = [[reading(86 if n == 0 else 82), reading(58 + 2 * n), reading(79)] for n in range(10)]
    scheduler = create_thermal_scheduler(hardware(*rows))
    for _ in rows[1:]:
        scheduler.monitor_thermal_state()
    assert scheduler.monitor_thermal_state()["hot_devices"] == [0]
    result = scheduler.schedule_job("a", 1)
    assert result["devices"] == [2]
    assert result["reasons"][0] == "82 C, was at 85 C or over and not below 80 C since"
    assert result["reasons"][1] == "76 C and 12.0 C a minute warmer: reaches 85 C in 0.8 minutes"


def test_health_is_asked_for() -> None:
    machine = hardware([reading(40, xids=(79,)), reading(50, xids=(63,)), reading(60)])
    scheduler = ThermalAwareScheduler(machine)
    assert scheduler.schedule_job("a", 2)["devices"] == [2, 1]


def test_the_state_of_heat() -> None:
    throttled = reading(70, throttle_reasons=("power_cap", "sw_thermal"))
    scheduler = create_thermal_scheduler(hardware([reading(86), throttled, UNKNOWN, reading(60)]))
    assert scheduler.monitor_thermal_state() == {
        "timestamp": 1000.0,
        "temperatures_c": {0: 86, 1: 70, 2: None, 3: 60},
        "throttled_devices": [1],
        "hot_devices": [0],
        "unknown_devices": [2],
    }


def test_the_report() -> None:
    row = [reading(65), reading(75), reading(85, throttle_reasons=("hw_thermal",)), UNKNOWN]
    scheduler = create_thermal_scheduler(hardware(row), power_budget_w=2000)
    assert scheduler.schedule_job("a", 2, estimated_power_per_device=250)["success"] is False
    assert scheduler.get_thermal_report() == {
        "timestamp": 1000.0,
        "active_jobs": 0,
        "jobs": {},
        "throttled_devices": 1,
        "throttled_device_ids": [2],
        "total_devices": 4,
        "thermal_distribution": {"optimal": 1, "warm": 1, "hot": 1, "critical": 0, "unknown": 1},
        "power_consumption": 180.0,
        "power_unknown_devices": 1,
        "power_budget_w": 2000,
        "committed_power_w": None,
    }
    scheduler = create_thermal_scheduler(hardware(row))
    scheduler.schedule_job("a", 3, estimated_power_per_device=250)
    report = scheduler.get_thermal_report()
    assert (report["active_jobs"], report["jobs"], report["committed_power_w"]) == (1, {"a": [0, 1, 3]}, 810)


def test_nothing_readable_is_unknown_and_not_0() -> None:
    scheduler = create_thermal_scheduler(hardware([UNKNOWN, UNKNOWN]))
    report = scheduler.get_thermal_report()
    assert report["power_consumption"] is None
    assert report["power_unknown_devices"] == 2
    assert report["thermal_distribution"]["unknown"] == 2
    result = scheduler.schedule_job("a", 1)
    assert result["devices"] == [0]
    assert "temperature unknown, so it comes last" in result["reasons"][0]


def test_no_reading_at_all() -> None:
    topology = hardware([reading()]).cluster_topology
    machine = HardwareTopologyManager(False, topology=topology, source=Listed([]))
    with pytest.raises(EndOfTrace):
        create_thermal_scheduler(machine).schedule_job("a", 1)


@pytest.mark.parametrize("attempt", range(4))
def test_threads_never_share_a_device(attempt: int) -> None:
    scheduler = create_thermal_scheduler(hardware([reading()] * 64), power_budget_w=64 * 300)
    barrier = threading.Barrier(8)
    found: list[int] = []

    def ask(number: int) -> None:
        barrier.wait()
        for turn in range(16):
            found.extend(scheduler.schedule_job(f"job {number} {turn}", 1)["devices"])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert sorted(found) == list(range(64))


def join(machine: HardwareTopologyManager, first: int) -> None:
    """As a discovery does that finds another node with ``first`` devices, which come before these."""
    own = machine.cluster_topology.nodes[0]
    moved = tuple(replace(gpu, device_id=first + gpu.device_id) for gpu in own.devices)
    others = tuple(
        DeviceInfo(device_id=n, index=n, kind="gpu", vendor=HardwareVendor.NVIDIA, name="other", uuid=f"x{n}")
        for n in range(first)
    )
    nodes = {
        0: replace(own, hostname="other", devices=others),
        1: replace(own, node_id=1, devices=moved),
    }
    machine.view.topology, machine.view.first_id = ClusterTopology(nodes=nodes), first


def test_jobs_keep_their_devices_when_the_node_joins_a_cluster() -> None:
    machine = hardware([reading(50), reading(60)])
    scheduler = create_thermal_scheduler(machine)
    assert scheduler.schedule_job("a", 1)["devices"] == [0]
    join(machine, 2)
    assert scheduler.get_thermal_report()["jobs"] == {"a": [2]}
    result = scheduler.schedule_job("b", 1)
    assert (result["devices"], result["reasons"][2]) == ([3], "taken by job 'a'")
    assert scheduler.schedule_job("b", 1)["error"].startswith("job 'b' has devices [3] already")


def test_workloads_keep_their_devices_when_the_node_joins_a_cluster() -> None:
    machine = hardware([reading(), reading()])
    optimizer = optimizer_of(machine, "train", "serve")
    join(machine, 2)
    result = optimizer.optimize_power_distribution({"train": 1, "serve": 1})
    assert result["device_adjustments"] == {2: 200, 3: 200}
    optimizer.record_measurement("train", 150, 5.0, 140.0, devices=[2])
    with pytest.raises(ValueError, match=r"devices must be among \[2, 3\], got 0"):
        optimizer.record_measurement("train", 150, 5.0, 140.0, devices=[0])


def test_a_listener_of_the_telemetry_may_call_the_scheduler() -> None:
    """A listener runs while the telemetry is locked: the scheduler may not hold its own to read it."""
    machine = hardware(*[[reading(), reading()]] * 400)
    scheduler = create_thermal_scheduler(machine)
    machine.telemetry.listeners.append(lambda snapshot: scheduler.release_job("a"))

    def churn() -> None:
        for _ in range(100):
            scheduler.schedule_job("a", 1)
            scheduler.get_thermal_report()

    threads = [threading.Thread(target=churn, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@given(
    st.lists(
        st.one_of(st.none(), st.integers(0, 5), st.tuples(st.integers(0, 5), st.integers(1, 3))), max_size=15
    ),
    st.integers(300, 2000),
)
def test_sequences_of_jobs_keep_devices_disjoint_and_the_budget(steps: list[object], budget_w: int) -> None:
    """A step is a reading (None), a release (job) or a request (job, devices)."""
    draws = [reading(40 + n, power_w=20.0 + 40 * n, power_limit_w=250.0) for n in range(5)]
    scheduler = create_thermal_scheduler(hardware(draws), power_budget_w=budget_w)
    jobs: dict[str, list[int]] = {}
    for step in steps:
        if step is None:
            scheduler.monitor_thermal_state()
        elif isinstance(step, int):
            assert scheduler.release_job(f"{step}") == (jobs.pop(f"{step}", None) is not None)
        else:
            result = scheduler.schedule_job(f"{step[0]}", step[1], estimated_power_per_device=220)
            if result["success"]:
                jobs[f"{step[0]}"] = result["devices"]
                assert len(result["devices"]) == step[1]
                assert result["committed_power_w"] <= budget_w
                assert result["committed_power_w"] == scheduler.get_thermal_report()["committed_power_w"]
        report = scheduler.get_thermal_report()
        assert report["jobs"] == jobs
        held = [n for devices in jobs.values() for n in devices]
        assert len(held) == len(set(held))
        counted = sum(max(220, 20 + 40 * n) if n in held else 20 + 40 * n for n in range(5))
        assert report["committed_power_w"] == counted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.schedule_job("a", 0), "num_devices must be positive, got 0"),
        (lambda s: s.schedule_job("a", 1, -5), "power_w must be positive, got -5"),
    ],
)
def test_requests_are_checked(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(create_thermal_scheduler(hardware([reading()])))
    with pytest.raises(ValueError, match="power_budget_w must be positive, got 0"):
        create_thermal_scheduler(hardware([reading()]), power_budget_w=0)


CURVE = [(400, 10.0, 380.0), (300, 9.5, 290.0), (200, 8.0, 195.0), (100, 3.0, 98.0)]


def optimizer_of(
    machine: HardwareTopologyManager, *workloads: str, **known: object
) -> PowerEfficiencyOptimizer:
    optimizer = PowerEfficiencyOptimizer(machine, **known)
    for number, workload in enumerate(workloads):
        for power_limit_w, throughput, power_w in CURVE:
            optimizer.record_measurement(workload, power_limit_w, throughput, power_w, devices=[number])
    return optimizer


def test_the_limit_of_least_energy_and_what_it_saves() -> None:
    machine = hardware([reading(power_w=380.0), reading(power_w=60.0)])
    result = optimizer_of(machine, "train", carbon_intensity_g_kwh=400).optimize_power_distribution(
        {"train": 1}
    )
    choice = result.pop("workload_limits")["train"]
    assert (choice.power_limit_w, choice.energy_j, choice.slowdown) == (200, 195 / 8, 1.25)
    assert result.pop("carbon_reduction_g_h") == pytest.approx((380 - 195) / 1000 * 400)
    assert result == {
        "success": True,
        "applied": False,
        "current_power_w": 440.0,
        "target_efficiency": 0.8,
        "device_adjustments": {0: 200},
        "estimated_savings_w": 185.0,
        "reason": "least energy at slowdowns of at most 1.25; limits sum to 200 W, no budget",
    }


def test_a_higher_target_keeps_more_throughput() -> None:
    optimizer = optimizer_of(hardware([reading()]), "train")
    found = {
        target: optimizer.optimize_power_distribution({"train": 1}, target)["device_adjustments"][0]
        for target in (1.0, 0.95, 0.9, 0.8, 0.3)
    }
    assert found == {1.0: 400, 0.95: 300, 0.9: 300, 0.8: 200, 0.3: 200}


def test_without_intensity_or_draw_savings_are_unknown() -> None:
    optimizer = optimizer_of(hardware([reading(power_w=None)]), "train")
    result = optimizer.optimize_power_distribution({"train": 1})
    assert (result["current_power_w"], result["carbon_reduction_g_h"]) == (None, None)
    assert result["estimated_savings_w"] == 185
    optimizer.record_measurement("train", 200, 8.0)
    result = optimizer.optimize_power_distribution({"train": 1})
    assert result["success"] is True
    assert result["workload_limits"]["train"].measured is False
    assert result["estimated_savings_w"] is None


def test_a_workload_without_measurements_is_reported() -> None:
    optimizer = optimizer_of(hardware([reading()]), "train")
    result = optimizer.optimize_power_distribution({"train": 1, "serve": 2})
    assert result["success"] is False
    assert result["reason"].startswith("no measurements of ['serve']")
    assert result["device_adjustments"] == {}


def test_a_budget_leaves_what_other_devices_draw() -> None:
    machine = hardware([reading(power_w=350.0), reading(power_w=350.0), reading(power_w=75.0)])
    result = optimizer_of(machine, "a", "b", power_budget_w=575).optimize_power_distribution({"a": 1, "b": 1})
    assert result["success"] is True
    assert sum(result["device_adjustments"].values()) <= 500
    assert result["reason"].endswith("; 75 W of 575 W go to devices without a workload")
    tight = optimizer_of(machine, "a", "b", power_budget_w=470).optimize_power_distribution({"a": 1, "b": 1})
    assert tight["success"] is False
    assert "need limits of 400 W together, 5 W over the budget of 395 W" in tight["reason"]


def test_a_budget_cannot_be_promised_beside_an_unbounded_draw() -> None:
    machine = hardware([reading(), UNKNOWN])
    result = optimizer_of(machine, "a", power_budget_w=1000).optimize_power_distribution({"a": 1})
    assert result["success"] is False
    assert "devices [1] without a workload are unknown" in result["reason"]


def test_two_workloads_on_one_device_cannot_have_two_limits() -> None:
    optimizer = optimizer_of(hardware([reading(), reading()]), "a")
    optimizer.record_measurement("b", 200, 1.0, devices=[0])
    assert (
        "device 0 runs both 'a' and 'b'" in optimizer.optimize_power_distribution({"a": 1, "b": 1})["reason"]
    )


def test_workloads_that_do_not_tell_their_devices_are_planned_but_not_set() -> None:
    optimizer = PowerEfficiencyOptimizer(hardware([reading()]), power_budget_w=350)
    optimizer.record_measurement("a", 400, 10.0, 380.0)
    optimizer.record_measurement("a", 300, 9.0, 290.0)
    result = optimizer.optimize_power_distribution({"a": 1})
    assert (result["success"], result["device_adjustments"]) == (True, {})
    assert result["workload_limits"]["a"].power_limit_w == 300
    assert "draw of other devices not counted" in result["reason"]
    result = optimizer.optimize_power_distribution({"a": 1}, apply=True)
    assert (result["success"], result["applied"]) == (False, False)
    assert result["reason"].startswith("devices of ['a'] are not known")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakePowerNvml:
    return fake_power_nvml.install(monkeypatch, ["GPU-0", "GPU-1"])


def test_limits_are_set_only_on_request_and_put_back(nvml: FakePowerNvml) -> None:
    optimizer = optimizer_of(hardware([reading(), reading()]), "a", "b")
    optimizer.optimize_power_distribution({"a": 1, "b": 1})
    assert nvml.sets == []
    result = optimizer.optimize_power_distribution({"a": 1, "b": 1}, apply=True)
    assert (result["success"], result["applied"]) == (True, True)
    assert nvml.limits_mw == {"GPU-0": 200_000, "GPU-1": 200_000}
    optimizer.optimize_power_distribution({"a": 1}, 1.0, apply=True)
    assert nvml.limits_mw == {"GPU-0": 400_000, "GPU-1": 300_000}
    assert optimizer.restore_power_limits() is True
    assert nvml.limits_mw == {"GPU-0": 300_000, "GPU-1": 300_000}
    assert optimizer.restore_power_limits() is False
    assert nvml.sessions == 0


def test_without_permission_it_says_so_and_sets_nothing(nvml: FakePowerNvml) -> None:
    def refuse(uuid: str, milliwatts: int) -> None:
        raise fake_power_nvml.NVMLError_NoPermission

    nvml.before_set = refuse
    optimizer = optimizer_of(hardware([reading()]), "a")
    result = optimizer.optimize_power_distribution({"a": 1}, apply=True)
    assert (result["success"], result["applied"]) == (False, False)
    assert "not permitted: run as root" in result["reason"]
    assert result["estimated_savings_w"] is None
    assert optimizer.restore_power_limits() is False


def test_a_limit_that_neither_takes_nor_goes_back_can_be_put_back_later(nvml: FakePowerNvml) -> None:
    def refuse(uuid: str, milliwatts: int) -> None:
        if uuid == "GPU-1" or milliwatts == 300_000:
            raise fake_power_nvml.NVMLError_GpuIsLost

    nvml.before_set = refuse
    optimizer = optimizer_of(hardware([reading(), reading()]), "a", "b")
    result = optimizer.optimize_power_distribution({"a": 1, "b": 1}, apply=True)
    assert result["success"] is False
    assert "not put back: power limit of gpu:0" in result["reason"]
    nvml.before_set = lambda uuid, milliwatts: None
    assert optimizer.restore_power_limits() is True
    assert nvml.limits_mw == {"GPU-0": 300_000, "GPU-1": 300_000}
    assert nvml.sessions == 0


def test_a_measured_limit_out_of_the_range_of_the_device(nvml: FakePowerNvml) -> None:
    optimizer = PowerEfficiencyOptimizer(hardware([reading()]))
    optimizer.record_measurement("a", 500, 10.0, devices=[0])
    result = optimizer.optimize_power_distribution({"a": 1}, apply=True)
    assert result["success"] is False
    assert "gpu:0 must be within 100 to 400 W, got 500" in result["reason"]


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    result = optimizer_of(hardware([reading()]), "a").optimize_power_distribution({"a": 1}, apply=True)
    assert result["success"] is False
    assert "nvidia-ml-py is not installed" in result["reason"]


def test_a_sweep_runs_at_each_limit_and_records_energy(
    nvml: FakePowerNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    joules = [0.0, 3000.0, 4000.0, 4500.0]  # before and after each of two runs, 10 s apart
    clock = iter([0.0, 10.0, 20.0, 30.0]).__next__
    monkeypatch.setattr(planner, "EnergyMeter", partial(EnergyMeter, clock=clock))
    machine = hardware(*[[reading(energy_j=value)] for value in joules])
    optimizer = PowerEfficiencyOptimizer(machine)
    at: list[int] = []

    def run() -> float:
        at.append(nvml.limits_mw["GPU-0"])
        return 7.0

    found = optimizer.measure("train", run, [350, 150], devices=[0])
    assert at == [350_000, 150_000]
    assert nvml.limits_mw["GPU-0"] == 300_000
    assert [(m.power_limit_w, m.power_w) for m in found] == [(350, 300.0), (150, 50.0)]
    assert all(m.throughput > 0 for m in found)
    assert optimizer.optimize_power_distribution({"train": 1}, 0.01)["success"] is True


def test_a_sweep_whose_run_fails_puts_the_limit_back(nvml: FakePowerNvml) -> None:
    optimizer = PowerEfficiencyOptimizer(hardware([reading()]))
    with pytest.raises(ZeroDivisionError):
        optimizer.measure("train", lambda: 1 / 0, [350], devices=[0])
    with pytest.raises(ValueError, match="throughput must be positive, got 0"):
        optimizer.measure("train", lambda: 0, [350], devices=[0])
    assert nvml.limits_mw["GPU-0"] == 300_000
    assert optimizer.optimize_power_distribution({"train": 1})["success"] is False


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o.optimize_power_distribution({}), "workload_priorities must name a workload"),
        (
            lambda o: o.optimize_power_distribution({"a": 1}, 0),
            "efficiency_target must be above 0 and at most 1",
        ),
        (lambda o: o.optimize_power_distribution({"a": 1}, 1.1), "at most 1, got 1.1"),
        (lambda o: o.optimize_power_distribution({"a": -1}), "priority must be positive, got -1"),
        (lambda o: o.record_measurement("a", 0, 1), "power_limit_w must be positive, got 0"),
        (lambda o: o.record_measurement("a", 1, 1, devices=[9]), r"devices must be among \[0\], got 9"),
        (
            lambda o: o.record_measurement("b", 1, 1, devices=[0, 0]),
            r"devices must be distinct, got \[0, 0\]",
        ),
    ],
)
def test_arguments_are_checked(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(optimizer_of(hardware([reading()]), "a"))


def test_devices_of_a_workload_stay_the_same() -> None:
    optimizer = optimizer_of(hardware([reading(), reading()]), "a")
    optimizer.record_measurement("a", 250, 9.0)
    with pytest.raises(ValueError, match=r"devices of workload 'a' are \[0\], got \[1\]"):
        optimizer.record_measurement("a", 250, 9.0, devices=[1])
    with pytest.raises(ValueError, match="power_budget_w must be positive, got -1"):
        PowerEfficiencyOptimizer(hardware([reading()]), power_budget_w=-1)
    with pytest.raises(ValueError, match="carbon_intensity_g_kwh must not be negative, got -1"):
        PowerEfficiencyOptimizer(hardware([reading()]), carbon_intensity_g_kwh=-1)
