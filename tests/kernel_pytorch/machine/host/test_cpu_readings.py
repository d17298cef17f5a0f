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


VIRTUOZZO = "cpu  3 0 3 10 0 0 0 0\n{cpu}\nswap 0 0\n\nctxt 1\ncpu\ncpu1 9 x 9 9 9 9 9 9\ncpu2 1 2 3\n"


def test_lines_of_proc_stat_that_do_not_parse_are_skipped(tmp_path: Path):
    reader = CpuReader([package(0, 0, 1, 2)], str(tmp_path))
    write(tmp_path, "proc/stat", VIRTUOZZO.format(cpu="cpu0 1 0 1 8 0 0 0 0"))
    assert reader.read()[0].utilization is None
    write(tmp_path, "proc/stat", VIRTUOZZO.format(cpu="cpu0 2 0 2 14 0 0 0 0"))
    assert reader.read()[0].utilization == 2 / 8


def test_a_cpu_that_comes_back_does_not_bring_its_past(tmp_path: Path):
    reader = CpuReader([package(0, 0, 1)], str(tmp_path))
    idle, busy = (0, 0, 0, 100, 0, 0, 0, 0), (900_000, 0, 0, 100, 0, 0, 0, 0)
    for ticks in ((idle, busy), (idle,)):
        write(tmp_path, "proc/stat", stat(*ticks))
        reader.read()
    later = (10, 0, 0, 190, 0, 0, 0, 0)
    write(tmp_path, "proc/stat", stat(later, busy))
    assert reader.read()[0].utilization == 10 / 100


def test_a_cpu_whose_counters_start_again_is_left_out(tmp_path: Path):
    """A container that moved to another host."""
    reader = CpuReader([package(0, 0, 1)], str(tmp_path))
    for first, second in ((900, 100), (10, 150)):
        ticks = [(busy, 0, 0, busy, 0, 0, 0, 0) for busy in (first, second)]
        write(tmp_path, "proc/stat", stat(*ticks))
        reading = reader.read()[0]
    assert reading.utilization == 50 / 100


def test_a_busy_cpu_whose_waiting_time_shrinks(tmp_path: Path):
    """As the kernel warns it may: it is busy all the same."""
    reader = CpuReader([package(0, 0)], str(tmp_path))
    for ticks in ((100, 0, 0, 50, 7, 0, 0, 0), (200, 0, 0, 50, 5, 0, 0, 0)):
        write(tmp_path, "proc/stat", stat(ticks))
        reading = reader.read()[0]
    assert reading.utilization == 1.0


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


@pytest.mark.parametrize(
    "kind",
    [
        "cpu-thermal",
        "cpu_thermal",
        "CPU-therm",
        "cpuss0-thermal",
        "cpu-0-1-thermal",
        "cluster1-thermal",
        "core-cluster-thermal",
        "bigcore0-thermal",
        "littlecore-thermal",
        "LITTLE",
        "cls0",
        "ap-thermal-cpu0",
        "soc_thermal",
        "soc-thermal",
        "package-thermal",
    ],
)
def test_temperature_of_boards(tmp_path: Path, kind: str):
    """Device trees name their thermal zones as they like. Neither GPU nor memory is the CPU."""
    zones = "sys/class/thermal/thermal_zone"
    others = ("gpu-thermal", "ddr_thermal", "npu-thermal", "acpitz", "cpufan", "gpuss-0-thermal")
    for number, other in enumerate(others):
        write_all(tmp_path, {f"{zones}{number}/type": other, f"{zones}{number}/temp": 90000})
    assert CpuReader([package(0, 0)], str(tmp_path)).read()[0].temperature_c is None
    write_all(tmp_path, {f"{zones}9/type": kind, f"{zones}9/temp": 45500})
    assert CpuReader([package(0, 0)], str(tmp_path)).read()[0].temperature_c == 45.5


def test_zones_of_the_cpus_come_before_those_of_the_chip_and_the_hottest_counts(tmp_path: Path):
    zones = "sys/class/thermal/thermal_zone"
    for number, (kind, degrees) in enumerate(
        (("soc-thermal", 70), ("cpu0-thermal", 51), ("cpu1-thermal", 53))
    ):
        write_all(tmp_path, {f"{zones}{number}/type": kind, f"{zones}{number}/temp": 1000 * degrees})
    assert CpuReader([package(0, 0)], str(tmp_path)).read()[0].temperature_c == 53
    write_all(tmp_path, {f"{zones}2/temp": "", f"{zones}1/temp": ""})
    assert CpuReader([package(0, 0)], str(tmp_path)).read()[0].temperature_c is None


def test_temperature_of_a_board_from_hwmon(tmp_path: Path):
    hwmon = "sys/class/hwmon/hwmon"
    for number, (kind, degrees) in enumerate((("nvme", 40), ("cpu_thermal", 61), ("gpu_thermal", 80))):
        write_all(tmp_path, {f"{hwmon}{number}/name": kind, f"{hwmon}{number}/temp1_input": 1000 * degrees})
    assert CpuReader([package(0, 0)], str(tmp_path)).read()[0].temperature_c == 61


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


RANGE_UJ = 262_143_328_850


def energies(root: Path, *seen: tuple[float, int | str], limit_uw: int | None = None) -> list[DeviceReading]:
    """Readings at these seconds of these counters, in microjoules."""
    zone = "sys/class/powercap/intel-rapl:0"
    write_all(root, {f"{zone}/name": "package-0", f"{zone}/max_energy_range_uj": RANGE_UJ})
    if limit_uw is not None:
        write(root, f"{zone}/constraint_1_power_limit_uw", limit_uw)
    times = iter([time_s for time_s, _ in seen])
    reader = CpuReader([package(0, 0)], str(root), clock=lambda: next(times))
    found = []
    for _, counter in seen:
        write(root, f"{zone}/energy_uj", counter)
        found.append(reader.read()[0])
    return found


def test_an_energy_counter_that_starts_again(tmp_path: Path):
    """212123 W, if it had gone on from the end of its range."""
    _, anew, after = energies(tmp_path, (0, 50_040_000_000), (1, 20_000_000), (2, 120_000_000))
    assert (anew.energy_j, anew.power_w) == (20, None)
    assert (after.energy_j, after.power_w) == (120, 100)


def test_an_energy_counter_that_starts_over(tmp_path: Path):
    _, over = energies(tmp_path, (0, RANGE_UJ - 100_000_000), (1, 200_000_000))
    assert (over.energy_j, over.power_w) == (RANGE_UJ / 1e6 + 200, 300)


def test_an_energy_counter_that_jumps_ahead_counts_nothing(tmp_path: Path):
    """A virtual machine has moved to another host. The energy falls, so that no difference is taken."""
    _, jump, after = energies(tmp_path, (0, 50_000_000), (1, 90_000_000_000), (2, 90_100_000_000))
    assert (jump.energy_j, jump.power_w) == (0, None)
    assert (after.energy_j, after.power_w) == (100, 100)


def test_two_readings_at_once_are_no_new_start(tmp_path: Path):
    first, second = energies(tmp_path, (0, 50_000_000), (0, 50_900_000))
    assert (first.energy_j, second.energy_j, second.power_w) == (50, 50.9, None)


@pytest.mark.parametrize(
    ("seconds", "limit_uw", "known"),
    [
        (60, None, True),
        (130, None, True),
        (132, None, False),
        (132, 4_095_000_000, False),
        (1000, 0, False),
        (1000, 250_000_000, True),
        (1100, 250_000_000, False),
    ],
)
def test_an_energy_counter_that_may_have_started_over_twice(
    tmp_path: Path, seconds: float, limit_uw: int | None, known: bool
):
    """After 131 s at 2,000 W, or as many at the package's limit, nobody can tell."""
    _, late = energies(tmp_path, (0, 10_000_000), (seconds, 6_010_000_000), limit_uw=limit_uw)
    assert (late.power_w == pytest.approx(6000 / seconds)) if known else late.power_w is None
    assert late.energy_j == (6010 if known else 0)


def test_throttle_counts_that_fall_tell_nothing(tmp_path: Path):
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    reader, found = CpuReader([package(0, 0)], str(tmp_path)), []
    for events in (7, 1, 1, "x", 1):
        write(tmp_path, count, events)
        found.append(reader.read()[0].throttle_reasons)
    assert found == [None, None, (), None, None]


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
