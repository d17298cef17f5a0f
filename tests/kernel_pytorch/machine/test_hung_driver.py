"""An NVML call that never returns: what was read stays true, the rest goes on, everything can be ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from fake_nvml import FakeNvml, error, h100
from sysfs_trees import write, write_host

from kernel_pytorch.distributed_scale.hardware_discovery import create_hardware_manager
from kernel_pytorch.machine import live, worker
from kernel_pytorch.machine.drivers import guarded
from kernel_pytorch.machine.facts import ClusterTopology
from kernel_pytorch.machine.host.host_readings import HostReader
from kernel_pytorch.machine.live import Machine
from kernel_pytorch.placement import PlacementRequest, place
from kernel_pytorch.watch.health import HealthState, MachineHealth


class Hanging:
    """Two GPUs, of which the second's temperature hangs once ``hangs`` is set, until ``gate`` is."""

    def __init__(self, monkeypatch, root):
        write_host(root, packages=[[[0]]], numa=[[0]])
        self.hangs, self.gate, self.entered = False, threading.Event(), threading.Event()
        self.first, self.second = h100(0), h100(1, GetTemperature=self._temperature)
        self.nvml = FakeNvml(monkeypatch, [self.first, self.second])
        self.clock = SimpleNamespace(now=1000.0)
        self.clock.time = self.clock.monotonic = lambda: self.clock.now
        for module in (live, worker):
            monkeypatch.setattr(module, "time", self.clock)
        self.machine = Machine(str(root), mounts=[])
        self._monkeypatch = monkeypatch

    def _temperature(self, kind):
        if self.hangs:
            self.entered.set()
            self.gate.wait()
        return 50

    def hang(self):
        """From the next reading on, which the caller does not wait for."""
        self.hangs = True
        self._monkeypatch.setattr(worker, "READ_S", 0.0)
        snapshot = self.machine.read()
        self.entered.wait()
        return snapshot

    def read(self, seconds):
        """The snapshot ``seconds`` later."""
        self.clock.now += seconds
        return self.machine.read()


@pytest.fixture
def hanging(monkeypatch, tmp_path):
    hanging = Hanging(monkeypatch, tmp_path)
    yield hanging
    hanging.gate.set()


def test_readings_carry_their_age_until_they_are_none(hanging):
    assert [reading.age_s for reading in hanging.read(1).devices.values()] == [0.0, 0.0]
    hanging.hang()
    snapshot = hanging.read(2)
    assert [reading.temperature_c for reading in snapshot.devices.values()] == [41, 50]
    assert snapshot.devices[1].age_s == 2
    snapshot = hanging.read(1.5)
    assert snapshot.devices[1].silent
    assert snapshot.host.memory_available_bytes == hanging.machine.read().host.memory_available_bytes


def test_the_host_is_read_all_the_same(hanging, tmp_path):
    hanging.hang()
    write(tmp_path, "proc/meminfo", "MemAvailable: 7 kB")
    assert hanging.read(0.2).host.memory_available_bytes == 7 * 1024


def test_a_device_fails_five_seconds_after_its_last_reading(hanging):
    """Every 0.2 s a snapshot; those that repeat the last reading count as no answer."""
    health = MachineHealth(hanging.machine.node.devices)
    for _ in range(3):
        health.update(hanging.read(0.2))
    health.update(hanging.hang())
    failed_after = None
    for step in range(40):
        health.update(hanging.read(0.2))
        if failed_after is None and health.device(1).state is HealthState.FAILED:
            failed_after = 0.2 * (step + 1)
    assert failed_after == pytest.approx(5.2)  # the snapshot after the last reading began the silence
    assert [evidence.kind for evidence in health.device(1).evidence] == ["silent"]


def test_a_slow_driver_is_not_silent(hanging):
    """Each reading comes 0.8 s after it was asked for: late for its snapshot, in time for the next."""
    health = MachineHealth(hanging.machine.node.devices)
    health.update(hanging.hang())
    for _ in range(20):
        hanging.clock.now += 0.8
        hanging.gate.set()
        hanging.machine._drivers.opened[0]._worker.call(lambda: None, 3600)  # the reading has come
        hanging.gate.clear()
        hanging.entered.clear()
        snapshot = hanging.read(0.2)
        hanging.entered.wait()
        health.update(snapshot)
        assert snapshot.devices[1].age_s == 1.0
    assert health.device(1).state is HealthState.HEALTHY


def test_it_is_read_again_when_it_answers(hanging):
    hanging.hang()
    assert hanging.read(60).devices[1].silent
    hanging.hangs = False
    hanging.gate.set()
    hanging.machine._drivers.opened[0]._worker.call(lambda: None, 3600)
    worker.READ_S = 60.0
    assert [reading.temperature_c for reading in hanging.read(1).devices.values()] == [41, 50]


def test_error_reports_are_told_once_however_late(hanging):
    hanging.nvml.events = [(hanging.first, 31)]
    told = [hanging.hang().devices[0].xids]
    told += [hanging.read(0.2).devices[0].xids, hanging.read(0.2).devices[0].xids]
    assert sorted(told) == [(), (), (31,)]


def test_facts_stay_as_they_were_with_a_note(hanging):
    before = hanging.machine.node
    hanging.hang()
    for _ in range(2):
        node = hanging.machine.refresh()
        assert [device.name for device in node.devices] == [device.name for device in before.devices]
        assert [(note.what, note.why) for note in node.missing] == [
            ("NVML: the facts of now", "NVML did not answer within 0 s"),
            ("NVML: readings", "NVML did not answer within 0 s"),
        ]


def test_closing_does_not_wait_for_it(hanging, monkeypatch):
    closed = threading.Event()
    monkeypatch.setattr(guarded, "CLOSE_S", 0.0)
    monkeypatch.setattr(pynvml, "nvmlShutdown", closed.set)
    hanging.hang()
    hanging.machine.close()
    hanging.machine.close()
    assert not closed.is_set()
    with pytest.raises(RuntimeError, match="closed"):
        hanging.machine.read()
    hanging.gate.set()
    assert closed.wait(60)  # as soon as it could be


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetName"])
def test_a_driver_that_does_not_open_is_left_out(monkeypatch, tmp_path, function):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    FakeNvml(monkeypatch, [h100()])
    gate = threading.Event()
    monkeypatch.setattr(pynvml, function, lambda *arguments: gate.wait())
    monkeypatch.setattr(guarded, "OPEN_S", 0.01)
    node = Machine(str(tmp_path), mounts=[], load_torch=False).node
    gate.set()
    assert [device.kind for device in node.devices] == ["cpu"]
    assert ("NVIDIA display controllers or accelerators", "NVML did not answer within 0.01 s") in [
        (note.what, note.why) for note in node.missing
    ]


def test_a_reading_that_raises_is_silent_and_logged_once(monkeypatch, tmp_path, caplog):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    FakeNvml(monkeypatch, [h100(0), h100(1)])
    machine = Machine(str(tmp_path), mounts=[])
    driver = machine._drivers.opened[0]._driver
    read = driver.read
    driver.read = lambda index: read(index) if index else {}["absent"]
    for _ in range(2):
        assert [reading.silent for reading in machine.read().devices.values()] == [True, False]
    assert [record.getMessage() for record in caplog.records] == ["NVML, device 0"]


def test_a_binding_that_raises_what_it_should_not_is_a_note(monkeypatch, tmp_path):
    FakeNvml(monkeypatch, [h100()])

    def absent():
        raise AttributeError("no nvmlInit")

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    missing = Machine(str(tmp_path), mounts=[], load_torch=False).node.missing
    assert "NVML: AttributeError('no nvmlInit')" in [note.why for note in missing]


def test_a_disk_that_hangs_leaves_out_nothing_else(monkeypatch, tmp_path):
    write(tmp_path, "proc/meminfo", "MemAvailable: 700 kB")
    (tmp_path / "first").mkdir()
    gate, entered = threading.Event(), threading.Event()
    statvfs = worker_statvfs(gate, entered)
    monkeypatch.setattr("os.statvfs", statvfs)
    monkeypatch.setattr(worker, "READ_S", 60.0)
    reader = HostReader(str(tmp_path), ["/first", "/dead"])
    first = reader._disks
    first.ask()
    entered.wait()
    monkeypatch.setattr(worker, "READ_S", 0.0)
    reading = reader.read()
    gate.set()
    assert reading.memory_available_bytes == 700 * 1024
    assert reading.disks.keys() == {"/first"}


def worker_statvfs(gate, entered):
    def statvfs(path):
        if path.name == "dead":
            entered.set()
            gate.wait()
        return SimpleNamespace(f_frsize=1, f_blocks=10, f_bavail=5)

    return statvfs


def test_a_manager_of_a_hanging_driver_shuts_down(monkeypatch):
    gate = threading.Event()
    answers = iter([41, 41])
    gpu = h100(GetTemperature=lambda kind: next(answers, None) or (gate.wait() and 41))
    nvml = FakeNvml(monkeypatch, [gpu])
    manager = create_hardware_manager(enable_monitoring=False)
    monkeypatch.setattr(worker, "READ_S", 0.01)
    manager.telemetry.interval_s = 0.01
    manager.telemetry.start()
    while manager.telemetry.latest is None or not manager.telemetry.latest.devices[0].age_s:
        pass
    manager.shutdown()
    manager.shutdown()
    assert nvml.shut_down == 0
    gate.set()


SCRIPT = """
import itertools, sys, time
sys.path.insert(0, sys.argv[1])
import pytest
from fake_nvml import FakeNvml, h100
from kernel_pytorch.cli import main
from kernel_pytorch.machine import worker

count = itertools.count()
hang = lambda kind: time.sleep(3600) if next(count) > 3 else 41
FakeNvml(pytest.MonkeyPatch(), [h100(GetTemperature=hang)])
worker.READ_S, worker.FRESH_S = 0.5, 0.6
sys.exit(main(["probe", "--serve", "127.0.0.1:0", "--interval", "0.2"]))
"""


def test_metrics_go_on_without_the_device_and_one_ctrl_c_ends_the_command():
    support = Path(__file__).parents[2] / "support"
    served = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(support)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = served.stdout.readline().strip()
        text = "device_temperature_celsius{"
        while "device_temperature_celsius{" in text:
            text = scrape(url)
        before = timestamp(text)
        while timestamp(text := scrape(url)) == before:
            pass
        assert "kernel_pytorch_memory_available_bytes" in text
        assert "device_temperature_celsius{" not in text
        served.send_signal(signal.SIGINT)
        _, errors = served.communicate(timeout=60)  # the call hangs for an hour
    finally:
        served.kill()
    assert (served.returncode, errors) == (0, "")


def scrape(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def timestamp(text):
    return text.partition("\nkernel_pytorch_last_reading_timestamp_seconds ")[2].partition("\n")[0]


def test_a_gpu_that_nvml_cannot_open_is_a_failed_device(monkeypatch, tmp_path):
    """GPU 1 of three. The ids are NVML's numbers; the address is the one that is left on the bus."""
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    for bus in ("1b", "1c", "1d"):
        for name, value in (("vendor", "0x10de"), ("class", "0x030200"), ("device", "0x2330")):
            write(tmp_path, f"sys/bus/pci/devices/0000:{bus}:00.0/{name}", value)
    nvml = FakeNvml(monkeypatch, [h100(0), h100(1), h100(2, GetTemperature=60)])

    def handle(index):
        if index == 1:
            raise error(pynvml.NVML_ERROR_GPU_IS_LOST)
        return nvml.handle(index)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    machine = Machine(str(tmp_path), mounts=[])
    node = machine.node
    assert [(device.device_id, device.index, device.pci_slot) for device in node.devices] == [
        (0, 0, "0000:1b:00.0"),
        (1, 1, "0000:1c:00.0"),
        (2, 2, "0000:1d:00.0"),
    ]
    assert [(note.what, note.why, note.fix) for note in node.missing] == [
        (
            "NVIDIA GPU 1 (0000:1c:00.0)",
            "NVML: GPU is lost",
            "reset it (nvidia-smi --gpu-reset), or reboot",
        )
    ]
    health = MachineHealth(node.devices)
    health.update(machine.read())
    states = [health.device(device.device_id).state for device in node.devices]
    assert states == [HealthState.HEALTHY, HealthState.FAILED, HealthState.HEALTHY]
    assert [evidence.kind for evidence in health.device(1).evidence] == ["lost"]
    assert machine.read().devices[2].temperature_c == 60
    placement = place(ClusterTopology(nodes={0: node}), PlacementRequest(num_devices=2))
    assert (placement.device_ids, placement.left_out) == ((0, 2), {1: "failed"})
