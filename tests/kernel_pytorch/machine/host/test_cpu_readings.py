from __future__ import annotations

from pathlib import Path

import pytest
from sysfs_trees import write

from kernel_pytorch.machine.facts import CpuPackage, HardwareVendor
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.cpu import read_packages
from kernel_pytorch.machine.host.cpu_readings import CpuReader
from kernel_pytorch.machine.readings import DeviceReading


def write_all(root: Path, files: dict[str, str | int]) -> None:
    for name, text in files.items():
        write(root, name, text)


def package(package_id: int, *cpus: int) -> CpuPackage:
    return CpuPackage(
        package_id=package_id,
        model="Xeon",
        vendor=HardwareVendor.INTEL,
        cores=tuple((cpu,) for cpu in cpus),
    )


def stat(*cpus: tuple[int, ...]) -> str:
    total = " ".join("0" * 10)
    lines = [f"cpu{number} " + " ".join(map(str, (*ticks, 0, 0))) for number, ticks in enumerate(cpus)]
    return "\n".join([f"cpu  {total}", *lines, "intr 1 2 3"])


def test_utilization_is_the_busy_share_since_the_reading_before(tmp_path: Path):
    reader = CpuReader([package(0, 0, 1), package(1, 2)], str(tmp_path))
    assert {reading.utilization for reading in reader.read().values()} == {None}
    idle = (10, 0, 0, 100, 0, 0, 0, 0)
    write_all(tmp_path, {"proc/stat": stat(idle, idle, idle)})
    assert {reading.utilization for reading in reader.read().values()} == {None}
    # user nice system idle iowait irq softirq steal
    later = [(20, 5, 5, 120, 20, 5, 5, 20), (10, 0, 0, 200, 0, 0, 0, 0), (110, 0, 0, 100, 0, 0, 0, 0)]
    write_all(tmp_path, {"proc/stat": stat(*later)})
    readings = reader.read()
    assert readings[0].utilization == pytest.approx(30 / 190)
    assert readings[1].utilization == 1.0
    assert {reading.utilization for reading in reader.read().values()} == {None}  # no time has passed


def test_temperature_of_intel_packages(tmp_path: Path):
    hwmon = "sys/class/hwmon"
    write_all(tmp_path, {f"{hwmon}/hwmon0/name": "nvme", f"{hwmon}/hwmon0/temp1_input": 99000})
    for number in (0, 1):
        folder = f"{hwmon}/hwmon{3 - number}"  # not in the packages' order
        write_all(
            tmp_path,
            {
                f"{folder}/name": "coretemp",
                f"{folder}/temp1_label": f"Package id {number}",
                f"{folder}/temp1_input": 51000 + 10_000 * number,
                f"{folder}/temp2_label": "Core 0",
                f"{folder}/temp2_input": 77000,
            },
        )
    readings = CpuReader([package(0, 0), package(1, 1)], str(tmp_path)).read()
    assert [readings[number].temperature_c for number in (0, 1)] == [51, 61]


def test_temperature_of_amd_packages_of_two_dies(tmp_path: Path):
    for number, celsius in enumerate((40, 45, 60, 50)):
        folder = f"sys/class/hwmon/hwmon{number}"
        write_all(
            tmp_path,
            {
                f"{folder}/name": "k10temp",
                f"{folder}/temp1_label": "Tctl",
                f"{folder}/temp1_input": 1000 * celsius + 27_000,
                f"{folder}/temp2_label": "Tdie",
                f"{folder}/temp2_input": 1000 * celsius,
            },
        )
    readings = CpuReader([package(0, 0), package(1, 1)], str(tmp_path)).read()
    assert [readings[number].temperature_c for number in (0, 1)] == [45, 60]
    three = CpuReader([package(0, 0), package(1, 1), package(2, 2)], str(tmp_path)).read()
    assert {reading.temperature_c for reading in three.values()} == {None}  # 4 sensors: whose is which?


def test_temperature_from_thermal_zones(tmp_path: Path):
    zones = "sys/class/thermal/thermal_zone"
    write_all(tmp_path, {f"{zones}0/type": "acpitz", f"{zones}0/temp": 20000})
    write_all(tmp_path, {f"{zones}10/type": "x86_pkg_temp", f"{zones}10/temp": 66500})
    assert CpuReader([package(0, 0)], str(tmp_path)).read()[0].temperature_c == 66.5


def test_clock_is_that_of_the_fastest_core(tmp_path: Path):
    for cpu, khz in enumerate((800_000, 3_400_000, 5_000_000)):
        write_all(tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq": khz})
    readings = CpuReader([package(0, 0, 1), package(1, 2, 3)], str(tmp_path)).read()
    assert [readings[number].sm_clock_mhz for number in (0, 1)] == [3400, 5000]


def test_throttling_since_the_reading_before(tmp_path: Path):
    count = "sys/devices/system/cpu/cpu4/thermal_throttle/package_throttle_count"
    reader = CpuReader([package(0, 4)], str(tmp_path))

    def read(events: int) -> tuple[str, ...] | None:
        write_all(tmp_path, {count: events})
        return reader.read()[0].throttle_reasons

    assert reader.read()[0].throttle_reasons is None
    assert [read(7), read(7), read(9), read(9)] == [None, (), ("hw_thermal",), ()]


def test_energy_and_power(tmp_path: Path):
    zone = "sys/class/powercap/intel-rapl:1"
    write_all(
        tmp_path,
        {
            "sys/class/powercap/intel-rapl:0/name": "package-1",
            "sys/class/powercap/intel-rapl:0/energy_uj": 77,
            "sys/class/powercap/intel-rapl:0:0/name": "core",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": 5,
            f"{zone}/name": "package-0",
            f"{zone}/max_energy_range_uj": 100_000_000,
            f"{zone}/constraint_0_power_limit_uw": 205_000_000,
        },
    )
    times = iter((0.0, 2.0, 4.0, 5.0, 6.0, 7.0))
    reader = CpuReader([package(0, 0)], str(tmp_path), clock=lambda: next(times))

    def read(energy_uj: int) -> DeviceReading:
        write_all(tmp_path, {f"{zone}/energy_uj": energy_uj})
        return reader.read()[0]

    first = read(50_000_000)
    assert (first.energy_j, first.power_w, first.power_limit_w) == (50, None, 205)
    second = read(90_000_000)
    assert (second.energy_j, second.power_w) == (90, 20)
    wrapped = read(10_000_000)
    assert (wrapped.energy_j, wrapped.power_w) == (110, 10)
    (tmp_path / zone / "energy_uj").unlink()
    refused = reader.read()[0]
    assert (refused.energy_j, refused.power_w) == (None, None)
    again = read(30_000_000)
    assert again.power_w is None  # it was not seen in between
    assert again.energy_j is not None
    assert again.energy_j >= 110  # a counter only grows
    assert read(31_000_000).power_w == 1


def test_packages_of_this_host():
    packages = read_packages(Files())
    if not packages:
        pytest.skip("no CPU topology in /sys/devices/system/cpu")
    reader = CpuReader(packages)
    reader.read()
    before = Path("/proc/stat").read_text()
    while Path("/proc/stat").read_text() == before:  # until a tick has passed
        sum(range(1000))
    readings = reader.read()
    assert readings.keys() == {package.package_id for package in packages}
    for reading in readings.values():
        assert reading.utilization is None or 0 <= reading.utilization <= 1
        assert reading.temperature_c is None or 0 < reading.temperature_c < 150
