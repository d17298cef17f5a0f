"""Readings of CPU packages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..facts import CpuPackage
from ..files import Files
from ..readings import DeviceReading
from .cpu_sensors import energy_zones, temperature_files

_CPUS = "sys/devices/system/cpu"
_MAX_W = 2000.0
"""Three times the power of the largest packages, which are sold with 500 to 700 W."""
_MIN_WRAP_S = 60.0
"""The shortest time in which a counter wraps around (Intel SDM, volume 3, 15.10.3)."""
_UPDATE_S = 1.0  # counters are updated every few milliseconds, perhaps less often than they are read


@dataclass
class _Before:
    """Values of a package at its last reading; None if they could not be read."""

    ticks: dict[int, tuple[int, int]] = field(default_factory=dict)
    throttled: int | None = None
    energy_uj: int | None = None
    """The last value of the counter that could be read."""
    energy_s: float = 0.0
    """When that was read, on the reader's clock."""
    energy_missed: bool = False
    """Whether a later attempt to read it failed."""
    energy_total_uj: int = 0
    """The first value of the counter plus all increases since: the counter itself wraps around."""


class CpuReader:
    """Reads CPU packages. Utilization, throttling and power are those since the last reading.

    ``sm_clock_mhz`` is the clock of the fastest core, ``power_w`` the mean since the last reading.

    Args:
        packages: the packages to read.
        root: folder that holds ``proc`` and ``sys``.
        clock: returns seconds since any fixed time, like ``time.monotonic``.
    """

    def __init__(
        self, packages: Iterable[CpuPackage], root: str = "/", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = Files(root)
        self._clock = clock
        self._packages = tuple(packages)
        ids = [package.package_id for package in self._packages]
        self._temperatures = temperature_files(self._files, ids)
        self._energies = energy_zones(self._files, ids)
        self._before = {package_id: _Before() for package_id in ids}

    def read(self) -> dict[int, DeviceReading]:
        """One reading of each package, by package id."""
        ticks = _cpu_ticks(self._files.text("proc/stat"))
        return {package.package_id: self._read(package, ticks) for package in self._packages}

    def _read(self, package: CpuPackage, ticks: dict[int, tuple[int, int]]) -> DeviceReading:
        before, package_id = self._before[package.package_id], package.package_id
        energy_j, power_w = self._energy(package_id, before)
        zone = self._energies.get(package_id)
        limit_uw = self._files.count(f"{zone}/constraint_0_power_limit_uw") if zone else None
        return DeviceReading(
            temperature_c=self._temperature(package_id),
            power_w=power_w,
            power_limit_w=None if limit_uw is None else limit_uw / 1e6,
            utilization=_utilization(package, ticks, before),
            sm_clock_mhz=self._clock_mhz(package),
            throttle_reasons=self._throttling(package, before),
            energy_j=energy_j,
        )

    def _temperature(self, package_id: int) -> float | None:
        values = [self._files.number(name) for name in self._temperatures.get(package_id, ())]
        known = [value for value in values if value is not None]
        return max(known) / 1000 if known else None

    def _clock_mhz(self, package: CpuPackage) -> float | None:
        names = (f"{_CPUS}/cpu{core[0]}/cpufreq/scaling_cur_freq" for core in package.cores)
        clocks = [khz for name in names if (khz := self._files.count(name))]
        return max(clocks) / 1000 if clocks else None

    def _throttling(self, package: CpuPackage, before: _Before) -> tuple[str, ...] | None:
        folder = f"{_CPUS}/cpu{package.cpus[0]}/thermal_throttle"
        last, now = before.throttled, self._files.count(f"{folder}/package_throttle_count")
        before.throttled = now
        if last is None or now is None or now < last:
            return None
        return ("hw_thermal",) if now > last else ()

    def _energy(self, package_id: int, before: _Before) -> tuple[float | None, float | None]:
        """The energy counter in joules, and the mean power in watts since the last reading.

        An increase larger than the package can draw means that the counter was reset (the driver was loaded
        again, or a virtual machine migrated); the energy then falls, as any counter does at a reset.
        """
        zone, now = self._energies.get(package_id), self._clock()
        counter = self._files.count(f"{zone}/energy_uj") if zone else None
        if counter is None:
            before.energy_missed = True
            return None, None
        last, seconds, missed = before.energy_uj, now - before.energy_s, before.energy_missed
        before.energy_uj, before.energy_s, before.energy_missed = counter, now, False
        added = None if last is None else self._added_uj(f"{zone}", last, counter, seconds)
        if added is None:
            falls = last is None or counter < before.energy_total_uj
            before.energy_total_uj = counter if falls else 0
            return before.energy_total_uj / 1e6, None
        before.energy_total_uj += added
        power_w = added / 1e6 / seconds if seconds > 0 and not missed else None
        return before.energy_total_uj / 1e6, power_w

    def _added_uj(self, zone: str, last: int, counter: int, seconds: float) -> int | None:
        """Energy drawn between two values of a counter that wraps around at the end of its range.

        None if the counter was reset, or may have wrapped around more than once.
        """
        span = self._files.count(f"{zone}/max_energy_range_uj") or 0
        added = counter - last if counter >= last else counter - last + span
        limits_uw = (self._files.count(f"{zone}/constraint_{number}_power_limit_uw") for number in range(3))
        power_limit_w = min(max((limit / 1e6 for limit in limits_uw if limit), default=_MAX_W), _MAX_W)
        once = not span or seconds <= _MIN_WRAP_S or power_limit_w * seconds * 1e6 < span
        return added if once and 0 <= added <= _MAX_W * (seconds + _UPDATE_S) * 1e6 else None


def _utilization(package: CpuPackage, ticks: dict[int, tuple[int, int]], before: _Before) -> float | None:
    """Busy share of the time of the CPUs in both readings: a CPU may go offline or online in between."""
    last, before.ticks = before.ticks, {cpu: ticks[cpu] for cpu in package.cpus if cpu in ticks}
    busy = passed = 0
    for cpu in last.keys() & before.ticks.keys():
        (busy_then, then), (busy_now, now) = last[cpu], before.ticks[cpu]
        if busy_now >= busy_then:
            busy += busy_now - busy_then
            passed += max(now - then, busy_now - busy_then)  # iowait may decrease (man 5 proc_stat)
    return busy / passed if passed else None


def _cpu_ticks(text: str | None) -> dict[int, tuple[int, int]]:
    """Busy and total ticks since boot, by CPU (man 5 proc_stat). iowait and steal are not busy."""
    found = {}
    for line in re.finditer("^cpu([0-9]{1,5})((?: [0-9]{1,20}){8,})$", text or "", re.MULTILINE):
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, line[2].split()[:8])
        busy = user + nice + system + irq + softirq
        found[int(line[1])] = (busy, busy + idle + iowait + steal)
    return found
