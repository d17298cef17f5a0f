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


_MOST_W = 2000.0
"""More than any package is built to draw, by a factor of three: the largest are sold with 500 to 700 W."""
_SHORTEST_TURN_S = 60.0
"""A counter starts over after about a minute at the earliest (Intel SDM, volume 3, 15.10.3)."""
_RENEWED_S = 1.0  # counters are renewed every few milliseconds; two readings may lie closer than that


@dataclass
class _Before:
    """What the reading before saw of a package; None: nothing."""

    ticks: dict[int, tuple[int, int]] = field(default_factory=dict)
    throttled: int | None = None
    energy_uj: int | None = None
    """As it was last read."""
    energy_s: float = 0.0
    """When, on the clock of the reader."""
    energy_missed: bool = False
    """It could not be read since."""
    energy_total_uj: int = 0
    """As the counter was at first, and all that was added since: the counter itself starts over."""


class CpuReader:
    """Reads packages again and again. Utilization, throttling and power compare with the reading before.

    ``sm_clock_mhz`` is the clock of the fastest core, ``power_w`` the mean since the reading before.

    Args:
        packages: those to read.
        root: folder that holds ``proc`` and ``sys``.
        clock: seconds, from any start.
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
        """By package id."""
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
        """Energy in joules and the mean power in watts since the reading before.

        A jump that the package cannot have drawn is a new start of the counter (the driver was loaded anew, a
        virtual machine moved): the energy falls, as that of any counter does that starts anew.
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
            anew = last is None or counter < before.energy_total_uj
            before.energy_total_uj = counter if anew else 0
            return before.energy_total_uj / 1e6, None
        before.energy_total_uj += added
        power_w = added / 1e6 / seconds if seconds > 0 and not missed else None
        return before.energy_total_uj / 1e6, power_w

    def _added_uj(self, zone: str, last: int, counter: int, seconds: float) -> int | None:
        """What was drawn between two values of a counter that starts over at the end of its range.

        None where the counter started anew, or may have started over more than once.
        """
        span = self._files.count(f"{zone}/max_energy_range_uj") or 0
        added = counter - last if counter >= last else counter - last + span
        limits = (self._files.count(f"{zone}/constraint_{number}_power_limit_uw") for number in range(3))
        limit_w = min(max((limit / 1e6 for limit in limits if limit), default=_MOST_W), _MOST_W)
        once = not span or seconds <= _SHORTEST_TURN_S or limit_w * seconds * 1e6 < span
        return added if once and 0 <= added <= _MOST_W * (seconds + _RENEWED_S) * 1e6 else None


def _utilization(package: CpuPackage, ticks: dict[int, tuple[int, int]], before: _Before) -> float | None:
    """Of the CPUs that both readings have: one may have gone offline, or come back, in between."""
    last, before.ticks = before.ticks, {cpu: ticks[cpu] for cpu in package.cpus if cpu in ticks}
    busy = passed = 0
    for cpu in last.keys() & before.ticks.keys():
        (busy_then, then), (busy_now, now) = last[cpu], before.ticks[cpu]
        if busy_now >= busy_then:
            busy += busy_now - busy_then
            passed += max(now - then, busy_now - busy_then)  # the time that it waited may shrink (proc_stat)
    return busy / passed if passed else None


def _cpu_ticks(text: str | None) -> dict[int, tuple[int, int]]:
    """Busy and all ticks since the boot by CPU (man 5 proc_stat). Neither waiting nor stolen time is busy."""
    found = {}
    for line in re.finditer("^cpu([0-9]{1,5})((?: [0-9]{1,20}){8,})$", text or "", re.MULTILINE):
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, line[2].split()[:8])
        busy = user + nice + system + irq + softirq
        found[int(line[1])] = (busy, busy + idle + iowait + steal)
    return found
