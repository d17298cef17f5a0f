"""Traces of a node with eight GPUs: ordinary days, and faults of random kind, time, size and device.

``python tests/support/faulty_traces.py [traces per fault] [seed]`` prints precision, recall and delay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor
from kernel_pytorch.machine.readings import DeviceReading, DiskReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.health import HealthState, MachineHealth, severity

GPUS = tuple(
    DeviceInfo(
        device_id=index, kind="gpu", index=index, vendor=HardwareVendor.NVIDIA, name="NVIDIA H100 80GB HBM3"
    )
    for index in range(8)
)
SEEDS = (0, 1, 2)
"""Of the traces that every test run sees; it draws one more."""
SECONDS = 180
LAST_ONSET = 80
"""The rules need at most 60 s, and some time is idle."""
DEGRADED, FAILED = HealthState.DEGRADED, HealthState.FAILED
Random = np.random.Generator
Finding = tuple[str, str]
"""Component and kind."""


@dataclass
class Day:
    """What the sensors of the node show, second by second; ``[t, gpus]`` unless stated otherwise."""

    random: Random
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    throttle: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    xids: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    mute: np.ndarray = field(default_factory=lambda: np.zeros((SECONDS, len(GPUS)), dtype=bool))
    host: dict[str, np.ndarray] = field(default_factory=dict)
    """``[t]``"""
    fell_off: np.ndarray = field(default_factory=lambda: np.zeros(SECONDS, dtype=bool))
    """Of the interface; ``[t]``"""
    lent: np.ndarray = field(default_factory=lambda: np.zeros(SECONDS, dtype=bool))
    """Whether a container has the virtual function; ``[t]``"""
    stamps_s: np.ndarray = field(default_factory=lambda: 1.8e9 + np.arange(SECONDS))
    """Of the system's clock; ``[t]``"""

    def __post_init__(self) -> None:
        random, shape = self.random, (SECONDS, len(GPUS))
        self.loaded = np.ones(SECONDS, dtype=bool)
        for _ in range(random.integers(3)):
            begin = random.integers(SECONDS)
            self.loaded[begin : begin + random.integers(5, 40)] = False
        loaded = self.loaded[:, None]
        capped = np.ones(SECONDS)  # all slow down together: a power limit on a hot day
        begin = random.integers(SECONDS)
        capped[begin : begin + 60] = random.uniform(0.5, 1)
        clocks = np.where(loaded, 1980 * capped[:, None], 345.0)
        warm = random.uniform(50, 76, len(GPUS))
        columns = self.columns
        columns["temperature_c"] = np.where(loaded, warm, 35) + random.uniform(-2, 2, shape)
        columns["memory_temperature_c"] = np.where(loaded, warm + 8, 40) + random.uniform(-2, 2, shape)
        columns["utilization"] = np.where(loaded, random.uniform(0.85, 1, shape), 0.0)
        columns["sm_clock_mhz"] = clocks * (1 + random.normal(0, 0.01, shape).clip(-0.03, 0.03))
        columns["power_w"] = np.where(loaded, 650.0, 90.0) + random.uniform(-20, 20, shape)
        columns["remap_failed"] = np.zeros(shape)
        columns["remap_pending"] = np.zeros(shape)
        columns["power_limit_w"] = np.full(shape, 700.0)
        if random.random() < 0.3:  # somebody saves energy; a slow GPU has equals in both halves
            limited = random.permutation(len(GPUS))[:4]
            columns["power_limit_w"][:, limited] = 300.0
            columns["sm_clock_mhz"][:, limited] *= 0.7
        for counter, per_s in (
            ("ecc_corrected", 0.02),
            ("nvlink_errors", 0.1),
            ("pcie_replays", 1 / 300),
            ("ecc_uncorrected", 0),
            ("retired_pages", 0),
        ):
            start = random.integers(0, 50, len(GPUS)) * (counter != "ecc_uncorrected")
            columns[counter] = start + np.cumsum(random.poisson(per_s, shape), axis=0).astype(float)
        self._harmless_events()
        self.host["memory_stall_s"] = 1e3 + np.cumsum(random.uniform(0, 0.03, SECONDS))
        self.host["cpu_stall_s"] = 1e4 + np.cumsum(random.uniform(0, 1, SECONDS))  # a busy host
        self.host["oom_kills"] = np.full(SECONDS, float(random.integers(3)))
        self.host["nic_errors"] = random.integers(100) + np.cumsum(random.poisson(0.05, SECONDS))
        self.host["used"] = random.uniform(0.1, 0.8) + np.linspace(0, 0.05, SECONDS)
        self.host["carrier"] = np.ones(SECONDS)

    def _harmless_events(self) -> None:
        """Short peaks, gaps, programs that crash, a power limit, a driver reload, a clock change."""
        random = self.random
        spike, gpu = random.integers(SECONDS), random.integers(len(GPUS))
        self.columns["temperature_c"][spike : spike + random.integers(1, 20), gpu] = 91.0
        gap, quiet = random.integers(SECONDS), random.integers(len(GPUS))
        self.mute[gap : gap + random.integers(1, 4), quiet] = True
        self.xids[random.integers(SECONDS), random.integers(len(GPUS))] = (int(random.choice([13, 31, 43])),)
        begin = random.integers(SECONDS)
        for t in range(begin, min(begin + 70, SECONDS)):
            for g in range(len(GPUS)):
                self.throttle[t, g] = ("power_cap",)
        begin, braked = random.integers(SECONDS), random.integers(len(GPUS))
        for t in range(begin, min(begin + 15, SECONDS)):
            self.throttle[t, braked] = ("hw_slowdown", "hw_power_brake")
        if random.random() < 0.3:
            reload = random.integers(1, SECONDS)
            for counter in ("ecc_corrected", "nvlink_errors", "pcie_replays", "ecc_uncorrected"):
                column = self.columns[counter]
                column[reload:] -= column[reload]
        for name in ("power_w", "sm_clock_mhz", "pcie_replays", "memory_temperature_c"):
            self.columns[name][random.random((SECONDS, len(GPUS))) < 0.01] = np.nan
        if random.random() < 0.5:  # an hour back, or ahead by more than any interval
            self.stamps_s[random.integers(2, SECONDS) :] += random.choice([-3600, -100, 100, 3600])
        begin = random.integers(SECONDS)
        self.lent[begin : begin + random.integers(1, 120)] = True

    def add_errors(self, counter: str, gpu: int, onset: int, per_s: float) -> None:
        """Errors from ``onset`` on; a driver loaded later sets its counters to zero."""
        column = self.columns[counter][:, gpu]
        growth = np.diff(column, prepend=column[0])
        growth[0] = column[0]
        resets = np.flatnonzero(growth < 0)
        added = np.where(np.arange(SECONDS) >= onset, per_s, 0.0)
        total = np.cumsum(added)
        for reset in resets:
            total[reset:] -= total[reset - 1]
        column += np.floor(total)

    def snapshots(self) -> Iterator[Snapshot]:
        integers = {"ecc_corrected", "ecc_uncorrected", "retired_pages", "nvlink_errors", "pcie_replays"}
        for t in range(SECONDS):
            devices = {}
            for g in range(len(GPUS)):
                if self.mute[t, g]:
                    if t % 2:
                        devices[g] = DeviceReading()  # else it is absent: both mean that it does not answer
                    continue
                values: dict[str, float | int | bool | None] = {}
                for name, column in self.columns.items():
                    value = float(column[t, g])
                    values[name] = None if np.isnan(value) else int(value) if name in integers else value
                for name in ("remap_failed", "remap_pending"):
                    values[name] = bool(values[name])
                devices[g] = DeviceReading(
                    throttle_reasons=self.throttle.get((t, g), ()),
                    xids=self.xids.get((t, g), ()),
                    **values,  # type: ignore[arg-type]
                )
            host = {name: float(column[t]) for name, column in self.host.items()}
            nics = {"eth0": NicReading(carrier=bool(host["carrier"]), errors=int(host["nic_errors"]))}
            if self.fell_off[t]:
                nics["eth0"] = NicReading(carrier=False, fell_off=True)
            if not self.lent[t]:  # it has no carrier when it comes back
                nics["eth1"] = NicReading(carrier=not self.lent[:t].any(), errors=0)
            yield Snapshot(
                time_s=float(self.stamps_s[t]),
                devices=devices,
                host=HostReading(
                    memory_stall_s=host["memory_stall_s"],
                    cpu_stall_s=host["cpu_stall_s"],
                    oom_kills=int(host["oom_kills"]),
                    nics=nics,
                    disks={
                        "/": DiskReading(
                            total_bytes=10**12, free_bytes=round(10**12 * (1 - min(host["used"], 1)))
                        )
                    },
                ),
            )


@dataclass(frozen=True)
class Fault:
    """``component`` None: some GPU."""

    kind: str
    state: HealthState
    inject: Callable[[Day, int, int], None]
    component: str | None = None


def _busy(day: Day, onset: int) -> None:
    """Load for a minute from ``onset`` on, where a fault shows under load only."""
    shape = (60, len(GPUS))
    rows = slice(onset, onset + 60)
    day.columns["utilization"][rows] = day.random.uniform(0.85, 1, shape)
    day.columns["sm_clock_mhz"][rows] = 1980 * (1 + day.random.normal(0, 0.01, shape).clip(-0.03, 0.03))


def _overheat(day: Day, onset: int, gpu: int) -> None:
    noise = day.random.uniform(-2, 2, SECONDS - onset)
    day.columns["temperature_c"][onset:, gpu] = day.random.uniform(87.5, 105) + noise


def _overheat_memory(day: Day, onset: int, gpu: int) -> None:
    noise = day.random.uniform(-2, 2, SECONDS - onset)
    day.columns["memory_temperature_c"][onset:, gpu] = day.random.uniform(97.5, 115) + noise


def _throttle(day: Day, onset: int, gpu: int) -> None:
    reasons = day.random.choice(["hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal"])
    for t in range(onset, SECONDS):
        day.throttle[t, gpu] = (str(reasons),)


def _slow(day: Day, onset: int, gpu: int) -> None:
    _busy(day, onset)
    day.columns["sm_clock_mhz"][onset:, gpu] *= day.random.uniform(0.3, 0.78)


def _remap(column: str) -> Callable[[Day, int, int], None]:
    def inject(day: Day, onset: int, gpu: int) -> None:
        day.columns[column][onset:, gpu] = 1

    return inject


def _errors(counter: str, least_per_s: float, most_per_s: float) -> Callable[[Day, int, int], None]:
    def inject(day: Day, onset: int, gpu: int) -> None:
        day.add_errors(counter, gpu, onset, day.random.uniform(least_per_s, most_per_s))

    return inject


def _bump(counter: str) -> Callable[[Day, int, int], None]:
    def inject(day: Day, onset: int, gpu: int) -> None:
        column = day.columns[counter][:, gpu]
        resets = np.flatnonzero(np.diff(column) < 0) + 1
        later = resets[resets > onset]
        column[onset : later[0] if len(later) else SECONDS] += day.random.integers(1, 5)

    return inject


def _xid(*numbers: int) -> Callable[[Day, int, int], None]:
    def inject(day: Day, onset: int, gpu: int) -> None:
        day.xids[onset, gpu] = (*day.xids.get((onset, gpu), ()), int(day.random.choice(numbers)))
        day.mute[onset, gpu] = False

    return inject


def _silent(day: Day, onset: int, gpu: int) -> None:
    day.mute[onset:, gpu] = True


def _nic_lost(day: Day, onset: int, gpu: int) -> None:
    if day.random.random() < 0.5:
        day.fell_off[onset:] = True
    else:
        day.host["carrier"][onset:] = 0


def _nic_errors(day: Day, onset: int, gpu: int) -> None:
    day.host["nic_errors"][onset:] += np.arange(SECONDS - onset) * day.random.integers(2, 1000)


def _disk(least: float, most: float) -> Callable[[Day, int, int], None]:
    def inject(day: Day, onset: int, gpu: int) -> None:
        day.host["used"][onset:] = day.random.uniform(least, most)

    return inject


def _oom(day: Day, onset: int, gpu: int) -> None:
    day.host["oom_kills"][onset:] += day.random.integers(1, 4)


def _pressure(counter: str, least: float) -> Callable[[Day, int, int], None]:
    def inject(day: Day, onset: int, gpu: int) -> None:
        before = day.host[counter][onset - 1]
        seconds = np.arange(1, SECONDS - onset + 1)
        day.host[counter][onset:] = before + seconds * day.random.uniform(least, 1)

    return inject


FAULTS = {
    "overheating": Fault("temperature", DEGRADED, _overheat),
    "overheating memory": Fault("memory_temperature", DEGRADED, _overheat_memory),
    "throttling": Fault("throttling", DEGRADED, _throttle),
    "one slow GPU of 8": Fault("clock_loss", DEGRADED, _slow),
    "ECC storm": Fault("ecc_corrected", DEGRADED, _errors("ecc_corrected", 2, 100)),
    "uncorrected ECC": Fault("ecc_uncorrected", FAILED, _bump("ecc_uncorrected")),
    "retired pages": Fault("retired_pages", DEGRADED, _bump("retired_pages")),
    "remap failure": Fault("remap_failed", FAILED, _remap("remap_failed")),
    "remap pending": Fault("remap_pending", DEGRADED, _remap("remap_pending")),
    "NVLink errors": Fault("nvlink_errors", DEGRADED, _errors("nvlink_errors", 2, 1000)),
    "PCIe replays": Fault("pcie_replays", DEGRADED, _errors("pcie_replays", 0.25, 50)),
    "fatal Xid": Fault("xid", FAILED, _xid(48, 64, 79, 95, 119, 120)),
    "serious Xid": Fault("xid", DEGRADED, _xid(63, 74, 92, 94)),
    "falls silent": Fault("silent", FAILED, _silent),
    "lost NIC": Fault("carrier_lost", FAILED, _nic_lost, "nic:eth0"),
    "NIC errors": Fault("nic_errors", DEGRADED, _nic_errors, "nic:eth0"),
    "full disk": Fault("disk_full", FAILED, _disk(0.982, 1), "disk:/"),
    "nearly full disk": Fault("disk_full", DEGRADED, _disk(0.902, 0.978), "disk:/"),
    "OOM kill": Fault("oom_kills", DEGRADED, _oom, "memory"),
    "memory pressure": Fault("memory_pressure", DEGRADED, _pressure("memory_stall_s", 0.15), "memory"),
}
WITHOUT, TWO = "no fault", "two faults"


@dataclass(frozen=True)
class Injected:
    state: HealthState
    onset: int


@dataclass(frozen=True)
class Found:
    state: HealthState
    """The worst."""
    second: int
    """When it was first found."""


def make_day(random: Random, names: tuple[str, ...]) -> tuple[Day, dict[Finding, Injected]]:
    """A day with these faults, on as many GPUs."""
    day = Day(random)
    injected = {}
    for name, gpu in zip(names, random.permutation(len(GPUS)), strict=False):
        fault, onset = FAULTS[name], int(random.integers(10, LAST_ONSET))
        fault.inject(day, onset, int(gpu))
        injected[fault.component or f"gpu:{gpu}", fault.kind] = Injected(fault.state, onset)
    return day, injected


def findings(snapshots: Iterable[Snapshot]) -> dict[Finding, Found]:
    """Everything that the rules hold against a component at any second."""
    health = MachineHealth(GPUS)
    found: dict[Finding, Found] = {}
    for second, snapshot in enumerate(snapshots):
        health.update(snapshot)
        for component, told in health.components().items():
            for item in told.evidence:
                if item.state is HealthState.HEALTHY:
                    continue
                first = found.get((component, item.kind), Found(item.state, second))
                worst = max(first.state, item.state, key=severity)
                found[component, item.kind] = Found(worst, first.second)
    return found


@dataclass
class Score:
    """Counts over traces."""

    hits: int = 0
    misses: int = 0
    false_alarms: int = 0
    delays: list[int] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    @property
    def precision(self) -> float:
        told = self.hits + self.false_alarms
        return self.hits / told if told else 1.0

    @property
    def recall(self) -> float:
        there = self.hits + self.misses
        return self.hits / there if there else 1.0

    def add(self, injected: dict[Finding, Injected], found: dict[Finding, Found]) -> None:
        """A hit is found in the right state; a false alarm before its fault began, or without one."""
        for finding, fault in injected.items():
            seen = found.get(finding)
            if seen is None or seen.state is not fault.state:
                self.misses += 1
                self.mistakes.append(f"missed {finding} {fault}: {seen}")
            elif seen.second >= fault.onset:
                self.hits += 1
                self.delays.append(seen.second - fault.onset)
        for finding, seen in found.items():
            if finding not in injected or seen.second < injected[finding].onset:
                self.false_alarms += 1
                self.mistakes.append(f"false alarm {finding} {seen}, injected {injected}")


def _two_faults(random: Random) -> tuple[str, ...]:
    """Two faults, not both of one disk or interface: the one may hide the other."""
    while True:
        names = tuple(random.choice(list(FAULTS), 2, replace=False))
        first, second = (FAULTS[name].component for name in names)
        if first is None or first != second:
            return names


def score(seed: int, traces: int) -> dict[str, Score]:
    """``traces`` of each fault alone, of none, and of pairs."""
    random = np.random.default_rng(seed)
    scores = {name: Score() for name in (*FAULTS, WITHOUT, TWO)}
    for name, result in scores.items():
        for _ in range(traces):
            alone = () if name == WITHOUT else (name,)
            day, injected = make_day(random, _two_faults(random) if name == TWO else alone)
            result.add(injected, findings(day.snapshots()))
    return scores


def main(traces: int, seed: int) -> None:
    print(f"{traces} traces of each, {SECONDS} s, {len(GPUS)} GPUs, seed {seed}")
    print(f"{'':20} {'precision':>9} {'recall':>7} {'delay s: median, most':>22}")
    for name, result in score(seed, traces).items():
        delays = f"{np.median(result.delays):.0f}, {max(result.delays)}" if result.delays else ""
        print(f"{name:20} {result.precision:9.3f} {result.recall:7.3f} {delays:>22}")
        for mistake in result.mistakes:
            print(f"  {mistake}")


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(arguments[0] if arguments else 20, arguments[1] if len(arguments) > 1 else 0)
