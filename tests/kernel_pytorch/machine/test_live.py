"""This machine, or a folder that looks like one, as a source of snapshots."""

from __future__ import annotations

import pynvml
import pytest
from fake_nvml import FakeNvml, error, h100
from sysfs_trees import write, write_host

from kernel_pytorch.machine.live import Machine


def test_gpus_are_read_under_their_ids_in_the_node(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    unsupported = error(pynvml.NVML_ERROR_NOT_SUPPORTED)
    first = h100(0, GetTemperature=40, GetTotalEnergyConsumption=unsupported)
    FakeNvml(monkeypatch, [first, h100(1, GetTemperature=50)])
    machine = Machine(str(tmp_path), mounts=[])
    assert [device.current_temp_c for device in machine.node.devices] == [40, 50]
    assert {number: r.temperature_c for number, r in machine.read().devices.items()} == {0: 40, 1: 50}
    assert [note.what for note in machine.node.missing] == []  # a CPU's sensors are not asked for


def test_an_error_report_is_in_the_next_snapshot_whoever_read_first(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    gpu = h100()
    nvml = FakeNvml(monkeypatch, [gpu])
    machine = Machine(str(tmp_path), mounts=[])
    nvml.events = [(gpu, 31)]
    machine.refresh()  # asks for a reading too
    nvml.events = [(gpu, 48)]
    machine.refresh()
    nvml.events = [(gpu, 79)]
    assert machine.read().devices[0].xids == (31, 48, 79)
    assert machine.read().devices[0].xids == ()
    machine.close()
    machine.close()
    assert nvml.shut_down == 1


def test_cpu_packages_are_the_devices_without_accelerators(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0], [1]], [[2], [3]]], numa=[[0, 1], [2, 3]], memory_kb=1000)
    write(tmp_path, "sys/class/hwmon/hwmon0/name", "coretemp")
    for number, degrees in ((0, 41000), (1, 52000)):
        write(tmp_path, f"sys/class/hwmon/hwmon0/temp{number + 1}_label", f"Package id {number}")
        write(tmp_path, f"sys/class/hwmon/hwmon0/temp{number + 1}_input", degrees)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    machine = Machine(str(tmp_path), mounts=[])
    assert [
        (d.label, d.numa_node, d.memory_bytes, d.cpus, d.compute_units) for d in machine.node.devices
    ] == [
        ("cpu:0", 0, 1024000, (0, 1), 2),
        ("cpu:1", 1, 1024000, (2, 3), 2),
    ]
    assert [(link.a, link.b) for link in machine.node.links] == [(0, 1)]
    assert {number: r.temperature_c for number, r in machine.read().devices.items()} == {0: 41, 1: 52}
    assert [note.what for note in machine.node.missing] == ["CPU energy and power"]


def test_packages_go_by_their_own_numbers(monkeypatch, tmp_path):
    """The second socket has number 2."""
    write_host(tmp_path, packages=[[[0], [1]], [[2], [3]]], numa=[[0], [1], [2, 3]], memory_kb=1000)
    for cpu in (2, 3):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", 2)
    for cpu, (base_khz, boost_khz) in ((0, (2400000, 3900000)), (2, (2500000, 4100000))):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/base_frequency", base_khz)
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", boost_khz)
    for number, (package, joules) in enumerate(((0, 5), (2, 7))):
        write(tmp_path, f"sys/class/powercap/intel-rapl:{number}/name", f"package-{package}")
        write(tmp_path, f"sys/class/powercap/intel-rapl:{number}/energy_uj", joules * 1000000)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    machine = Machine(str(tmp_path), mounts=[])
    assert [(d.label, d.index, d.numa_node) for d in machine.node.devices] == [
        ("cpu:0", 0, None),  # it has two NUMA nodes
        ("cpu:1", 2, 2),
    ]
    assert [device.memory_bytes for device in machine.node.devices] == [2048000, 1024000]
    assert [(d.base_clock_mhz, d.boost_clock_mhz) for d in machine.node.devices] == [
        (2400, 3900),
        (2500, 4100),
    ]
    assert {number: r.energy_j for number, r in machine.read().devices.items()} == {0: 5, 1: 7}
    assert [(note.what, note.fix) for note in machine.node.missing] == [("CPU temperature", None)]


def test_a_counter_that_only_root_may_read(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]], memory_kb=1000)
    write(tmp_path, "sys/class/powercap/intel-rapl:0/name", "package-0")
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    missing = Machine(str(tmp_path), mounts=[]).node.missing
    assert ("CPU energy and power", "energy_uj cannot be read", "run as root") in [
        (note.what, note.why, note.fix) for note in missing
    ]


def test_sensors_that_are_not_understood_are_named(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    zone, hwmon = "sys/class/thermal/thermal_zone0", "sys/class/hwmon/hwmon0"

    def why() -> str:
        missing = Machine(str(tmp_path), mounts=[]).node.missing
        return next(note.why for note in missing if note.what == "CPU temperature")

    assert why() == "no sensor in /sys/class/hwmon or /sys/class/thermal"
    for name, text in ((f"{zone}/type", "acpitz"), (f"{hwmon}/name", "nvme"), (f"{hwmon}/temp1_input", 1)):
        write(tmp_path, name, text)
    assert why() == "none of the sensors acpitz, nvme could be read as that of a CPU package"


def test_memory_of_packages_whose_numa_nodes_are_unknown(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0]], [[1]], [[2]]], numa=[[0], [1]], memory_kb=1000)
    (tmp_path / "sys/devices/system/node/node1/meminfo").unlink()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    machine = Machine(str(tmp_path), mounts=[])
    assert [device.memory_bytes for device in machine.node.devices] == [1024000, None, None]


def test_a_folder_without_anything(tmp_path):
    machine = Machine(str(tmp_path), mounts=[])
    (device,) = machine.node.devices
    assert (device.kind, device.memory_bytes, machine.node.memory_gb) == ("cpu", None, None)
    assert machine.node.limits.cpus
    assert "CPU topology and limits" in [note.what for note in machine.node.missing]
    assert machine.read().devices[0].silent


def test_no_more_memory_than_the_control_group_grants(tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]], memory_kb=1 << 20)
    write(tmp_path, "proc/self/cgroup", "0::/job")
    write(tmp_path, "proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    write(tmp_path, "sys/fs/cgroup/job/memory.max", 4096)
    (device,) = Machine(str(tmp_path), mounts=[]).node.devices
    assert device.memory_bytes == 4096


def test_affinity_without_sysfs(tmp_path):
    write(tmp_path, "proc/self/status", "Cpus_allowed_list:\t1,3")
    assert Machine(str(tmp_path), mounts=[]).node.limits.cpus == (1, 3)


def test_a_closed_machine_is_not_read(tmp_path):
    machine = Machine(str(tmp_path), mounts=[])
    machine.close()
    with pytest.raises(RuntimeError, match="closed"):
        machine.read()


def test_packages_that_share_a_numa_node_have_no_memory_of_their_own(tmp_path):
    write_host(tmp_path, packages=[[[0]], [[1]]], numa=[[0, 1]])
    assert [device.memory_bytes for device in Machine(str(tmp_path), mounts=[]).node.devices] == [None, None]
