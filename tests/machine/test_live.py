"""This machine, or a folder that looks like one, as a source of snapshots."""

from __future__ import annotations

from fake_nvml import FakeNvml, h100
from sysfs_trees import write, write_host

from kernel_pytorch.machine.live import Machine


def test_gpus_are_read_under_the_ids_of_the_cluster(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    FakeNvml(monkeypatch, [h100(0, GetTemperature=40), h100(1, GetTemperature=50)])
    machine = Machine(str(tmp_path), mounts=[])
    assert [device.current_temp_c for device in machine.node.devices] == [40, 50]
    assert {number: r.temperature_c for number, r in machine.read().devices.items()} == {0: 40, 1: 50}
    machine.number_from(6)
    assert {number: r.temperature_c for number, r in machine.read().devices.items()} == {6: 40, 7: 50}


def test_an_error_report_is_in_the_next_snapshot_whoever_read_first(monkeypatch, tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    gpu = h100()
    nvml = FakeNvml(monkeypatch, [gpu])
    machine = Machine(str(tmp_path), mounts=[])
    nvml.events = [(gpu, 31)]
    machine.refresh()  # asks for a reading too
    nvml.events = [(gpu, 79)]
    assert machine.read().devices[0].xids == (31, 79)
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


def test_a_folder_without_anything(tmp_path):
    machine = Machine(str(tmp_path), mounts=[])
    (device,) = machine.node.devices
    assert (device.kind, device.memory_bytes, machine.node.memory_gb) == ("cpu", None, None)
    assert machine.node.limits.cpus
    assert "CPU topology" in [note.what for note in machine.node.missing]
    assert machine.read().devices[0].silent
