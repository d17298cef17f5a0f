"""Readings of CPU packages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..facts import CpuPackage
from ..files import Files
from ..readings import DeviceReading
from .cpu_sensors import energy_zones, temperature_files

_CPUS = "sys/devices/system/cpu"


@dataclass
class _Before:
    """What the reading before saw of a package; None: nothing."""

    busy: int | None = None
    ticks: int | None = None
    throttled: int | None = None
    energy_uj: int | None = None
    energy_s: float | None = None
    """When, on the clock of the reader."""
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
        limit_uw = self._files.number(f"{zone}/constraint_0_power_limit_uw") if zone else None
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
        clocks = [khz for name in names if (khz := self._files.number(name)) is not None]
        return max(clocks) / 1000 if clocks else None

    def _throttling(self, package: CpuPackage, before: _Before) -> tuple[str, ...] | None:
        folder = f"{_CPUS}/cpu{package.cpus[0]}/thermal_throttle"
        last, before.throttled = before.throttled, self._files.number(f"{folder}/package_throttle_count")
        if last is None or before.throttled is None:
            return None
        return ("hw_thermal",) if before.throttled > last else ()

    def _energy(self, package_id: int, before: _Before) -> tuple[float | None, float | None]:
        """Energy in joules and the mean power in watts since the reading before."""
        zone, now = self._energies.get(package_id), self._clock()
        counter = self._files.number(f"{zone}/energy_uj") if zone else None
        if counter is None:
            before.energy_uj = before.energy_s = None
            return None, None
        last, last_s = before.energy_uj, before.energy_s
        before.energy_uj, before.energy_s = counter, now
        if last is None or last_s is None:
            before.energy_total_uj = max(before.energy_total_uj, counter)
            return before.energy_total_uj / 1e6, None
        span = self._files.number(f"{zone}/max_energy_range_uj")
        if counter < last and span is None:
            return None, None
        added = counter - last if counter >= last else counter - last + (span or 0)
        before.energy_total_uj += added
        power = added / 1e6 / (now - last_s) if now > last_s else None
        return before.energy_total_uj / 1e6, power


def _utilization(package: CpuPackage, ticks: dict[int, tuple[int, int]], before: _Before) -> float | None:
    own = [ticks[cpu] for cpu in package.cpus if cpu in ticks]
    last_busy, last_total = before.busy, before.ticks
    if not own:
        return None
    before.busy, before.ticks = sum(busy for busy, _ in own), sum(total for _, total in own)
    if last_busy is None or last_total is None or before.ticks <= last_total:
        return None
    share = (before.busy - last_busy) / (before.ticks - last_total)
    return min(max(share, 0.0), 1.0)  # a CPU that went offline takes its ticks along


def _cpu_ticks(text: str | None) -> dict[int, tuple[int, int]]:
    """Busy and all ticks since the boot by CPU (man 5 proc_stat). Neither waiting nor stolen time is busy."""
    found = {}
    for line in (text or "").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdecimal():
            user, nice, system, idle, iowait, irq, softirq, steal = (int(value) for value in values[:8])
            busy = user + nice + system + irq + softirq
            found[int(name[3:])] = (busy, busy + idle + iowait + steal)
    return found
