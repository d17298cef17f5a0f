from __future__ import annotations

import secrets
import statistics
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from faulty_traces import FAULTS, GPUS, SEEDS, score
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor
from kernel_pytorch.machine.readings import DeviceReading, DiskReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.health import (
    ComponentHealth,
    HealthState,
    MachineHealth,
    Thresholds,
    assess,
    severity,
)
from kernel_pytorch.watch.health.clock_loss import clock_losses

HEALTHY, DEGRADED, FAILED = HealthState.HEALTHY, HealthState.DEGRADED, HealthState.FAILED
FINE = {"temperature_c": 50.0, "throttle_reasons": ()}


@pytest.mark.parametrize("seed", [*SEEDS, None], ids=[*map(str, SEEDS), "fresh"])
def test_precision_and_recall_on_traces_with_faults_drawn_at_random(seed: int | None):
    if seed is None:
        seed = secrets.randbits(32)
    print(f"python tests/support/faulty_traces.py 1 {seed}")
    scores = score(seed, traces=1)
    mistakes = [mistake for result in scores.values() for mistake in result.mistakes]
    assert mistakes == [], f"seed {seed}"
    assert {(result.precision, result.recall) for result in scores.values()} == {(1.0, 1.0)}
    assert sum(result.hits for result in scores.values()) == len(FAULTS) + 2


def gpu(
    *readings: dict[str, object] | None, every_s: float = 1, device: DeviceInfo = GPUS[0]
) -> ComponentHealth:
    """Of a GPU with these readings, one each second; None: no answer."""
    return assess(seconds(readings, every_s), [device])["gpu:0"]


def seconds(readings: Iterable[dict[str, object] | None], every_s: float = 1) -> list[Snapshot]:
    return [
        Snapshot(
            time_s=1e9 + number * every_s,
            devices={} if reading is None else {0: DeviceReading(**reading)},  # type: ignore[arg-type]
        )
        for number, reading in enumerate(readings)
    ]


def kinds(health: ComponentHealth) -> list[str]:
    return [item.kind for item in health.evidence]


@pytest.mark.parametrize(
    ("celsius", "readings", "state"), [(85, 31, DEGRADED), (85, 30, HEALTHY), (84.9, 100, HEALTHY)]
)
def test_temperature(celsius: float, readings: int, state: HealthState):
    health = gpu(FINE, *[{"temperature_c": celsius}] * readings)
    assert health.state is state
    assert kinds(health) == ["temperature"] * (state is DEGRADED)


def test_evidence_tells_value_threshold_and_time():
    (evidence,) = gpu(FINE, *[{"temperature_c": 90.0}] * 40).evidence
    assert (evidence.value, evidence.threshold, evidence.since_s) == (90, 85, 1e9 + 1)
    assert evidence.text == "90 C, 85 or more for 39 s"


def test_heat_that_is_over_is_over():
    hot = [{"temperature_c": 90.0}] * 40
    assert gpu(*hot, FINE).state is HEALTHY
    assert gpu(*hot, *[{"power_w": 90.0}] * 3).state is DEGRADED  # unknown is no news
    assert gpu(*hot[:20], *[{"power_w": 90.0}] * 300, *hot[:10]).state is HEALTHY
    assert gpu(*hot[:20], *[{"power_w": 90.0}] * 300, *hot[:20]).state is DEGRADED


@pytest.mark.parametrize("reason", ["hw_thermal", "hw_slowdown", "hw_power_brake", "sw_thermal"])
def test_throttling_that_is_a_fault(reason: str):
    health = gpu(*[{"throttle_reasons": ("power_cap", reason)}] * 31)
    assert (health.state, kinds(health)) == (DEGRADED, ["throttling"])
    assert health.evidence[0].text == f"slowed down for 30 s: {reason}"
    assert gpu(*[{"throttle_reasons": (reason,)}] * 30).state is HEALTHY


def test_throttling_that_is_a_choice():
    assert gpu(*[{"throttle_reasons": ("power_cap", "sync_boost", "clocks_setting")}] * 100).state is HEALTHY


@pytest.mark.parametrize(
    ("metric", "harmless", "fault", "state"),
    [
        ("ecc_uncorrected", 0, 1, FAILED),
        ("retired_pages", 0, 1, DEGRADED),
        ("ecc_corrected", 99, 100, DEGRADED),
        ("nvlink_errors", 99, 100, DEGRADED),
        ("pcie_replays", 8, 9, DEGRADED),
    ],
)
def test_counters(metric: str, harmless: int, fault: int, state: HealthState):
    start = 0 if metric == "ecc_uncorrected" else 7
    assert gpu({metric: start}, {metric: start + harmless}).state is HEALTHY
    health = gpu({metric: start}, {metric: start + fault})
    assert (health.state, kinds(health)) == (state, [metric])
    assert health.evidence[0].value == fault
    gap: list[dict[str, object]] = [{"power_w": 1.0}] * 3
    assert gpu({metric: start}, *gap, {metric: start + fault}).state is state


def test_what_was_counted_before_the_first_reading():
    for metric in ("retired_pages", "ecc_corrected", "nvlink_errors", "pcie_replays"):
        assert gpu({metric: 10**9}).state is HEALTHY
    assert gpu({"ecc_uncorrected": 1}).state is FAILED  # since the driver's load, and not reset since


@pytest.mark.parametrize(
    ("metric", "over_s"), [("ecc_corrected", 3700), ("nvlink_errors", 65), ("pcie_replays", 65)]
)
def test_errors_that_have_passed(metric: str, over_s: int):
    after = [{metric: 1000}] * 2
    assert gpu({metric: 0}, *after, every_s=over_s / 3).state is DEGRADED
    assert gpu({metric: 0}, *after, {metric: 1001}, every_s=over_s).state is HEALTHY


@pytest.mark.parametrize("metric", ["ecc_uncorrected", "retired_pages"])
def test_errors_that_do_not_pass(metric: str):
    assert gpu({metric: 0}, *[{metric: 1}] * 5, every_s=1e6).state in (FAILED, DEGRADED)


@pytest.mark.parametrize("metric", ["retired_pages", "ecc_corrected", "pcie_replays"])
def test_a_counter_that_starts_over(metric: str):
    assert gpu({metric: 10**6}, {metric: 0}, {metric: 0}).state is HEALTHY
    assert gpu({metric: 10**6}, {metric: 500}).state is not HEALTHY  # added since it started over


def test_a_row_remap_that_waits_for_a_reset_degrades_from_the_first_reading_on():
    health = gpu({"remap_failed": False, "remap_pending": True})
    assert (health.state, kinds(health)) == (DEGRADED, ["remap_pending"])
    assert health.evidence[0].text == "the remap of a faulty memory row waits for a reset"
    assert gpu({"remap_pending": True}, {"remap_pending": None}).state is DEGRADED
    assert gpu({"remap_pending": True}, {"remap_pending": False}).state is HEALTHY  # it was reset


@pytest.mark.parametrize(
    ("slowdown_c", "threshold_c"), [(None, 85), (97, 85), (87, 85), (86.5, 84.5), (82, 80)]
)
def test_a_gpu_that_slows_itself_down_early_is_too_hot_early(slowdown_c: float | None, threshold_c: float):
    device = replace(GPUS[0], slowdown_temperature_c=slowdown_c)
    assert gpu(*[{"temperature_c": threshold_c - 0.5}] * 40, device=device).state is HEALTHY
    (evidence,) = gpu(*[{"temperature_c": threshold_c}] * 40, device=device).evidence
    assert (evidence.kind, evidence.threshold) == ("temperature", threshold_c)
    lower = assess(seconds([{"temperature_c": 70.0}] * 40), [device], Thresholds(temperature_c=70))["gpu:0"]
    assert lower.state is DEGRADED


def test_remap_failure():
    health = gpu({"remap_failed": False}, {"remap_failed": True})
    assert (health.state, kinds(health)) == (FAILED, ["remap_failed"])
    assert gpu({"remap_failed": False}).state is HEALTHY


@pytest.mark.parametrize(
    ("xid", "state"),
    [(number, FAILED) for number in (46, 48, 79, 95, 109, 119, 136, 143, 158)]
    + [(number, DEGRADED) for number in (54, 63, 74, 94, 144, 150)]
    + [(number, HEALTHY) for number in (13, 31, 43, 45, 99, 999)],
)
def test_xids(xid: int, state: HealthState):
    health = gpu(FINE, {**FINE, "xids": (xid,)}, *[FINE] * 5)
    assert health.state is state
    assert [(item.kind, item.value, item.state) for item in health.evidence] == [("xid", xid, state)]
    hours = gpu(FINE, {**FINE, "xids": (xid,)}, *[FINE] * 5, every_s=3600)
    assert kinds(hours) == ["xid"] * (state is not HEALTHY)


def test_a_device_that_falls_silent():
    silent: list[dict[str, object] | None] = [None, {}, None, {}, None, None]
    health = gpu(FINE, *silent)
    assert (health.state, kinds(health)) == (FAILED, ["silent"])
    assert gpu(FINE, *silent[:5]).state is HEALTHY
    assert gpu(FINE, *silent, FINE).state is HEALTHY


def test_a_device_that_never_answered():
    health = gpu(*[None] * 100)
    assert (health.state, health.reason, health.evidence) == (None, "it has not answered so far", ())


def test_a_device_that_tells_nothing_of_its_health():
    health = gpu({"memory_used_bytes": 5, "utilization": 1.0, "sm_clock_mhz": 2000.0})
    assert health.state is None
    assert health.reason is not None
    assert health.reason.startswith("nothing that the rules need can be read: temperature, throttling")


def test_a_fault_counts_where_nothing_else_can_be_read():
    assert gpu({"utilization": 1.0, "xids": (79,)}).state is FAILED


def test_what_could_not_be_checked():
    assert gpu({"temperature_c": 50.0, "ecc_corrected": 1}).unchecked == (
        *("throttling", "clock_loss", "memory_temperature", "remap_failed", "remap_pending"),
        *("ecc_uncorrected", "retired_pages", "nvlink_errors", "pcie_replays"),
    )
    cpu = DeviceInfo(device_id=0, kind="cpu", index=0, vendor=HardwareVendor.AMD, name="EPYC")
    health = assess(seconds([{"temperature_c": 50.0}]), [cpu])["cpu:0"]
    assert (health.state, health.unchecked) == (HEALTHY, ("throttling", "clock_loss"))


def fleet(clocks: list[float], *, load: float = 1.0, names: str = "aaaaaaaa", count: int = 31) -> set[int]:
    """The devices that lose clock, having shown these for 30 s."""
    devices = [replace(GPUS[number], name=names[number]) for number in range(len(clocks))]
    readings = {
        number: DeviceReading(sm_clock_mhz=clock, utilization=load) for number, clock in enumerate(clocks)
    }
    snapshots = [Snapshot(time_s=float(second), devices=readings) for second in range(count)]
    health = assess(snapshots, devices)
    return {number for number in range(len(clocks)) if "clock_loss" in kinds(health[f"gpu:{number}"])}


def test_one_slow_gpu_of_eight():
    assert fleet([1980] * 5 + [1600] + [1980] * 2) == {5}
    assert fleet([1980] * 5 + [1600] + [1980] * 2, count=30) == set()
    assert fleet([1980] * 5 + [1700] + [1980] * 2) == set()


def test_all_slow_together_is_no_straggler():
    assert fleet([700] * 8) == set()


def test_an_idle_device_may_be_slow():
    assert fleet([1980] * 7 + [300], load=0.1) == set()


def test_two_that_disagree_have_no_majority():
    assert fleet([1980, 1000]) == set()
    assert fleet([1980, 1000, 1980]) == {1}
    assert fleet([2000, 1000, 1400]) == set()
    assert fleet([1980, 1980, 1000, 1000]) == set()
    assert fleet([1000, 1950, 2050, 3000]) == set()


def test_devices_of_other_names_are_no_peers():
    assert fleet([1980, 1980, 1980, 1000, 1000, 1000], names="aaabbb") == set()
    assert fleet([1980, 1980, 1980, 1000, 1000, 500], names="aaabbb") == {5}


@given(
    clocks=st.lists(
        st.none() | st.sampled_from([1000, 1500, 1690, 1700, 1850, 2000]), min_size=1, max_size=8
    ),
    data=st.data(),
)
def test_clock_losses_by_brute_force(clocks: list[int | None], data: st.DataObject):
    count = len(clocks)
    names = data.draw(st.lists(st.sampled_from("ab"), min_size=count, max_size=count))
    use = data.draw(st.lists(st.sampled_from([None, 0.0, 0.4, 0.5, 1.0]), min_size=count, max_size=count))
    losses = clock_losses(
        names,
        np.array(clocks, dtype=float),
        np.array(use, dtype=float),
        loss=0.15,
        load=0.5,
    )
    for number in range(count):
        peers = [
            clock
            for clock, name, share in zip(clocks, names, use, strict=True)
            if clock is not None and name == names[number] and share is not None and share >= 0.5
        ]
        own = clocks[number]
        expected = None
        if own is not None and (use[number] or 0) >= 0.5 and len(peers) >= 3:
            median = statistics.median(peers)
            agree = [clock for clock in peers if abs(1 - clock / median) <= 0.075]
            if len(agree) > len(peers) / 2:
                expected = 1 - own / median
        np.testing.assert_allclose(losses[number], np.nan if expected is None else expected)


def test_most_of_the_equals_agree_if_they_lie_within_half_the_loss_of_the_median():
    clocks, loaded = np.array([896.0, 1024.0, 2048.0]), np.ones(3)
    assert clock_losses(list("aaa"), clocks, loaded, loss=0.25, load=1).tolist() == [0.125, 0, -1]
    assert np.isnan(clock_losses(list("aaa"), clocks, loaded, loss=0.249, load=1)).all()


def host(
    *readings: HostReading | None, every_s: float = 1, thresholds: Thresholds | None = None
) -> dict[str, ComponentHealth]:
    snapshots = [
        Snapshot(time_s=number * every_s, devices={}, host=reading) for number, reading in enumerate(readings)
    ]
    return assess(snapshots, [], thresholds)


@pytest.mark.parametrize(
    ("field", "component", "share", "state"),
    [("memory_stall_s", "memory", 0.1, DEGRADED), ("cpu_stall_s", "cpu", 0.5, HEALTHY)],
)
def test_pressure(field: str, component: str, share: float, state: HealthState):
    """A busy CPU is no fault, but it is told."""

    def after(readings: int, stalled: float) -> ComponentHealth:
        return host(*[HostReading(**{field: 100 + stalled * t}) for t in range(readings)])[component]  # type: ignore[arg-type]

    told = after(31, share + 0.01)
    assert (told.state, kinds(told)) == (state, [f"{component}_pressure"])
    fine = after(31, share - 0.01)
    assert (fine.state, kinds(fine)) == (HEALTHY, [])
    early = after(30, 1.0)
    assert (early.state, early.evidence) == (None, ())
    assert early.reason == "no readings of the pressure that cover 30 s"


def test_pressure_that_is_over():
    stalls = [float(min(t, 40)) for t in range(120)]
    assert host(*[HostReading(memory_stall_s=s) for s in stalls])["memory"].state is HEALTHY
    assert host(*[HostReading(memory_stall_s=s) for s in stalls[:41]])["memory"].state is DEGRADED


def test_pressure_that_is_told_in_steps_is_at_most_all_the_time():
    stalls = [2.0 * (t // 2) for t in range(10)]
    thresholds = Thresholds(pressure_window_s=1)
    (evidence,) = host(*[HostReading(cpu_stall_s=s) for s in stalls[:9]], thresholds=thresholds)[
        "cpu"
    ].evidence
    assert evidence.value == 1


def test_a_reboot_is_no_negative_pressure():
    stalls = [1000.0 + t for t in range(40)] + [0.0] * 40
    assert host(*[HostReading(cpu_stall_s=s) for s in stalls])["cpu"].state is HEALTHY
    assert host(*[HostReading(cpu_stall_s=s) for s in stalls[:41]])["cpu"].state is None  # it begins anew


def test_oom_kills():
    kills = [HostReading(oom_kills=3), HostReading(oom_kills=4)]
    health = host(*kills)["memory"]
    assert (health.state, kinds(health), health.unchecked) == (DEGRADED, ["oom_kills"], ("memory_pressure",))
    assert host(*kills, *kills[1:] * 2, every_s=3700)["memory"].state is HEALTHY
    assert host(kills[0])["memory"].state is HEALTHY


def disks(free: int, total: int = 1000) -> HostReading:
    return HostReading(disks={"/": DiskReading(total_bytes=total, free_bytes=free)})


@pytest.mark.parametrize(
    ("free", "state"), [(101, HEALTHY), (100, DEGRADED), (21, DEGRADED), (20, FAILED), (0, FAILED)]
)
def test_disks(free: int, state: HealthState):
    assert host(disks(free))["disk:/"].state is state


def test_a_disk_that_was_cleared():
    assert host(disks(0), disks(500))["disk:/"].state is HEALTHY


def test_a_file_system_without_space_is_not_full():
    assert host(disks(0, total=0))["disk:/"].state is HEALTHY


def test_a_disk_that_is_gone_is_unknown():
    health = host(disks(0), HostReading())["disk:/"]
    assert (health.state, health.evidence) == (None, ())
    assert health.reason == "it is not mounted any more, or cannot be read"


def nic(carrier: bool | None, errors: int | None = 0) -> HostReading:
    return HostReading(nics={"eth0": NicReading(carrier=carrier, errors=errors)})


FELL_OFF = HostReading(nics={"eth0": NicReading(carrier=False, fell_off=True)})


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        (nic(False), "no carrier for 5 s, having had one before"),
        (FELL_OFF, "no carrier, its device has left the bus, for 5 s, having had one before"),
    ],
    ids=["down", "fell off"],
)
def test_a_lost_interface(lost: HostReading, text: str):
    health = host(nic(True), *[lost] * 6)["nic:eth0"]
    assert (health.state, kinds(health)) == (FAILED, ["carrier_lost"])
    assert health.evidence[0].text == text
    assert host(nic(True), *[lost] * 5)["nic:eth0"].state is HEALTHY
    assert host(nic(True), *[lost] * 6, nic(True))["nic:eth0"].state is HEALTHY


def test_there_is_no_verdict_on_an_interface_that_left_on_purpose():
    gone = host(nic(True), nic(False), *[HostReading()] * 9)["nic:eth0"]
    assert (gone.state, gone.evidence) == (None, ())
    assert gone.reason == "it left this host's network: moved, renamed or deleted"
    back = host(nic(True, 10**6), *[HostReading()] * 9, *[nic(False, 2 * 10**6)] * 9)["nic:eth0"]
    assert (back.state, back.reason) == (None, "it has had no carrier so far")
    assert host(nic(True), HostReading(), *[nic(True)] * 2, *[nic(False)] * 6)["nic:eth0"].state is FAILED


def test_an_interface_that_was_never_up():
    for reading in (nic(False), nic(None)):
        health = host(*[reading] * 20)["nic:eth0"]
        assert (health.state, health.reason) == (None, "it has had no carrier so far")


def test_errors_of_an_interface():
    assert host(nic(True, 5), nic(True, 65))["nic:eth0"].state is DEGRADED
    assert host(nic(True, 5), nic(True, 64))["nic:eth0"].state is HEALTHY
    assert host(nic(True, 65), nic(True, 5))["nic:eth0"].state is HEALTHY
    assert host(nic(True, None))["nic:eth0"].unchecked == ("nic_errors",)


def test_a_host_that_is_not_read_is_unknown():
    health = host(None, None)
    assert {name: told.state for name, told in health.items()} == {"memory": None, "cpu": None}
    assert all(told.reason for told in health.values())


def test_a_reset_lasts_until_the_next_fault():
    health = MachineHealth(GPUS[:2])
    bad = DeviceReading(ecc_uncorrected=1, xids=(79,), temperature_c=50)
    start = DeviceReading(ecc_uncorrected=0)
    for time_s, reading in enumerate([start, bad, bad]):
        health.update(Snapshot(time_s=time_s, devices={0: reading, 1: reading}))
    health.reset_device(0)
    assert (health.device(0).state, health.device(1).state) == (None, FAILED)
    steady = DeviceReading(ecc_uncorrected=1, temperature_c=50)
    health.update(Snapshot(time_s=3, devices={0: steady, 1: steady}))
    assert (health.device(0).state, health.device(1).state) == (HEALTHY, FAILED)
    worse = DeviceReading(ecc_uncorrected=2, temperature_c=50)
    health.update(Snapshot(time_s=4, devices={0: worse, 1: worse}))
    assert [item.value for item in health.device(0).evidence] == [1]
    assert health.device(0).state is FAILED


def test_a_clock_that_is_set_back():
    health = MachineHealth(GPUS[:1])
    for time_s, celsius in ((1000.0, 50), (1001.0, 99), (1.0, 99), (30.0, 99)):
        health.update(Snapshot(time_s=time_s, devices={0: DeviceReading(temperature_c=celsius)}))
        assert health.device(0).state is HEALTHY
    health.update(Snapshot(time_s=31.0, devices={0: DeviceReading(temperature_c=99)}))
    assert health.device(0).state is DEGRADED  # 30 s in all


def test_thresholds_that_are_changed_count_from_the_next_snapshot():
    health = MachineHealth(GPUS[:1])
    snapshots = seconds([{"temperature_c": 70.0}] * 50)
    for snapshot in snapshots[:10]:
        health.update(snapshot)
    health.thresholds = Thresholds(temperature_c=65, temperature_sustained_s=5)
    assert health.device(0).state is HEALTHY
    for snapshot in snapshots[10:]:
        health.update(snapshot)
    assert [(item.kind, item.threshold) for item in health.device(0).evidence] == [("temperature", 65)]


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("temperature_c", 0, ValueError, "temperature_c must be positive, got 0"),
        ("silent_s", float("inf"), ValueError, "silent_s must be positive, got inf"),
        ("cpu_stall_share", 1.5, ValueError, "cpu_stall_share is a share of 1, got 1.5"),
        ("disk_full_share", 0.99, ValueError, "must not exceed disk_failed_share, got 0.99 and 0.98"),
        ("nic_errors_per_minute", "many", TypeError, "nic_errors_per_minute must be a number, got 'many'"),
        ("retired_pages", True, TypeError, "retired_pages must be a number, got True"),
    ],
)
def test_bad_thresholds(field: str, value: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Thresholds(**{field: value})  # type: ignore[arg-type]


def test_no_devices():
    assert MachineHealth([]).components().keys() == {"memory", "cpu"}


def test_a_lower_power_limit_is_no_straggler():
    def clocks(limit_w: float) -> set[str]:
        readings = {
            number: DeviceReading(
                sm_clock_mhz=1400.0 if number < 2 else 1900.0,
                utilization=1.0,
                power_limit_w=limit_w if number < 2 else 700.0,
            )
            for number in range(8)
        }
        snapshots = [Snapshot(time_s=t, devices=readings) for t in range(60)]
        return {name for name, health in assess(snapshots, GPUS).items() if health.state is DEGRADED}

    assert clocks(700.0) == {"gpu:0", "gpu:1"}
    assert clocks(300.0) == set()


def test_a_cpu_may_be_warmer_than_a_gpu():
    cpu = replace(GPUS[0], kind="cpu")
    assert assess(seconds([{"temperature_c": 94.0}] * 40), [cpu])["cpu:0"].state is HEALTHY
    assert assess(seconds([{"temperature_c": 96.0}] * 40), [cpu])["cpu:0"].state is DEGRADED
    (evidence,) = assess(seconds([{"temperature_c": 96.0}] * 40), [cpu])["cpu:0"].evidence
    assert evidence.threshold == 95


def hot_at(*times: float) -> ComponentHealth:
    snapshots = [Snapshot(time_s=t, devices={0: DeviceReading(temperature_c=95.0)}) for t in times]
    return assess(snapshots, GPUS[:1])["gpu:0"]


@pytest.mark.parametrize("interval_s", [61.0, 120.0, 600.0])
def test_readings_may_be_minutes_apart_from_the_first_on(interval_s: float):
    (evidence,) = hot_at(1e9, 1e9 + interval_s).evidence
    assert (evidence.kind, evidence.since_s) == ("temperature", 1e9)
    assert evidence.text == f"95 C, 85 or more for {interval_s:.0f} s"
    assert hot_at(1e9, 1e9 + interval_s, 1e9 + 2 * interval_s).evidence[0].since_s == 1e9


def test_a_clock_set_forward_lets_nothing_hold_longer():
    assert hot_at(*range(5), 3605, 3606).state is HEALTHY
    assert hot_at(0, 100, 200).state is DEGRADED


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_times_are_those_of_the_clock_as_it_is_now(jump_s: float):
    (evidence,) = hot_at(*np.arange(40.0), *(jump_s + np.arange(40.0, 50.0))).evidence
    assert evidence.since_s == jump_s + 1  # the second in which the clock was set is left out
    assert evidence.text == "95 C, 85 or more for 48 s"


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_what_was_counted_in_a_jump_is_no_pressure(jump_s: float):
    """Tasks waited 5 % of the time; in the jump, of 120 s in truth, 6 s more."""
    stalls = [*(0.05 * t for t in range(40)), *(8 + 0.05 * t for t in range(40))]
    times = [*np.arange(40.0), *(jump_s + np.arange(40.0, 80.0))]
    readings = [
        Snapshot(time_s=t, devices={}, host=HostReading(memory_stall_s=s))
        for t, s in zip(times, stalls, strict=True)
    ]
    for count in range(60, 81):
        assert assess(readings[:count], [])["memory"].evidence == ()
    assert assess(readings, [])["memory"].state is HEALTHY


def test_a_report_about_a_program_is_kept_for_an_hour():
    report, later = {**FINE, "xids": (13,)}, [FINE]
    assert kinds(gpu(report, *later, every_s=3600)) == ["xid"]
    assert kinds(gpu(report, *later, every_s=3600.5)) == []


def test_states_are_ordered_with_the_unknown_between_healthy_and_degraded():
    assert sorted([FAILED, None, DEGRADED, HEALTHY], key=severity) == [HEALTHY, None, DEGRADED, FAILED]
