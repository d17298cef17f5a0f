"""What Prometheus is told, read back by its own parser."""

from __future__ import annotations

import topologies
from prometheus_client import generate_latest
from prometheus_samples import samples

from kernel_pytorch.machine.readings import DeviceReading, DiskReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.metrics import MachineCollector, registry_of
from kernel_pytorch.watch.node_watch import NodeWatch


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
    watch = NodeWatch(devices, Readings())
    telemetry, registry = watch.telemetry, registry_of(MachineCollector(watch))
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
    watch = NodeWatch(tuple(topologies.dgx_h100().devices)[:2], Readings())
    telemetry, registry = watch.telemetry, registry_of(MachineCollector(watch))
    telemetry.sample()
    assert generate_latest(registry)
    telemetry.error = OSError("the driver is gone")
    assert generate_latest(registry) == b""
