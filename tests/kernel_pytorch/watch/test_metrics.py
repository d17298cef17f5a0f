"""``probe --serve``: scraped over HTTP, parsed by Prometheus's own parser."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import urlsplit

import pytest
import topologies
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kernel_pytorch.cli import main
from kernel_pytorch.machine.readings import DeviceReading, DiskReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.metrics import MachineCollector, registry_of
from kernel_pytorch.watch.telemetry import Telemetry


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("kernel_pytorch_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Readings:
    def read(self) -> Snapshot:
        return Snapshot(
            time_s=0.0,
            devices={
                0: DeviceReading(
                    temperature_c=41, sm_clock_mhz=1980, memory_clock_mhz=2619, energy_j=1234.5, xids=(79,)
                ),
                1: DeviceReading(utilization=0.5, ecc_uncorrected=0),
            },
            host=HostReading(
                memory_stall_s=1.5,
                nics={
                    "ib0": NicReading(carrier=False),
                    "ib1": NicReading(carrier=True, errors=3),
                    "ib2": NicReading(),
                },
                disks={"/": DiskReading(total_bytes=100, free_bytes=40)},
            ),
        )


def test_readings_in_base_units_and_the_unknown_absent():
    devices = tuple(topologies.dgx_h100().devices)[:3]  # the third was not read
    telemetry = Telemetry(Readings(), [0, 1])
    registry = registry_of(MachineCollector(telemetry, devices))
    assert generate_latest(registry) == b""
    telemetry.sample()
    found = samples(generate_latest(registry).decode())
    name, first, second = devices[0].name, devices[0].uuid, devices[1].uuid
    gpu0, gpu1 = ("gpu:0", name, first), ("gpu:1", name, second)
    assert {key: value for key, value in found.items() if key[0] != "component_health"} == {
        ("last_reading_timestamp_seconds",): 0,
        ("device_temperature_celsius", *gpu0): 41,
        ("device_clock_hertz", *gpu0): 1.98e9,
        ("device_memory_clock_hertz", *gpu0): 2.619e9,
        ("device_energy_joules_total", *gpu0): 1234.5,
        ("device_utilization_ratio", *gpu1): 0.5,
        ("device_ecc_uncorrected_total", *gpu1): 0,
        ("memory_stall_seconds_total",): 1.5,
        ("disk_free_bytes", "/"): 40,
        ("disk_size_bytes", "/"): 100,
        ("interface_carrier", "ib0"): 0,
        ("interface_carrier", "ib1"): 1,
        ("interface_errors_total", "ib1"): 3,
    }
    assert found["component_health", "gpu:0", "failed"] == 1
    assert found["component_health", "gpu:0", "healthy"] == 0
    # Nothing is known of the third: it has no state, rather than none of them.
    assert not [key for key in found if key[:2] == ("component_health", "gpu:2")]


def test_nothing_old_while_readings_fail():
    telemetry = Telemetry(Readings(), [0, 1])
    registry = registry_of(MachineCollector(telemetry, tuple(topologies.dgx_h100().devices)[:2]))
    telemetry.sample()
    assert generate_latest(registry)
    telemetry.error = OSError("the driver is gone")
    assert generate_latest(registry) == b""


def test_scraped():
    command = [sys.executable, "-m", "kernel_pytorch.cli", "probe", "--serve", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=60) as answer:
            found = samples(answer.read().decode())
        assert found["memory_available_bytes",] > 0
        assert found["disk_size_bytes", "/"] > found["disk_free_bytes", "/"] >= 0
        with pytest.raises(ConnectionRefusedError):  # at the other addresses of this machine it is not served
            socket.create_connection(("127.0.0.2", urlsplit(url).port), timeout=60)
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_readings_go_on():
    """Free memory never stays the same: asked until a second reading shows."""
    command = [sys.executable, "-m", "kernel_pytorch.cli", "probe", "--serve", ":0", "--interval", "0.05"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://0.0.0.0:")
        seen = set()
        until = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < until:
            with urllib.request.urlopen(url, timeout=60) as answer:
                seen.add(samples(answer.read().decode())["memory_available_bytes",])
        assert len(seen) == 2
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.parametrize("address", ["9400x", "host", "1:99999", ""])
def test_what_is_no_address(capsys, address):
    assert main(["probe", "--serve", address]) == 2
    assert "--serve takes [HOST]:PORT" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["probe", "--serve", f"127.0.0.1:{taken.getsockname()[1]}"]) == 2
    assert "Address already in use" in capsys.readouterr().err
