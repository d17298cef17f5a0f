"""What a driver may answer and cannot be: unknown, noted once, whoever the vendor is."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from fake_nvml import FakeNvml, h100
from hypothesis import given
from hypothesis import strategies as st
from sysfs_trees import write_host

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor, MigInstance, PciLink
from kernel_pytorch.machine.live import Machine
from kernel_pytorch.machine.possible import (
    is_possible,
    possible_facts,
    possible_readings,
    sum_of_counters,
)
from kernel_pytorch.machine.readings import DeviceReading

ONES_32, ONES_64 = (1 << 32) - 1, (1 << 64) - 1
GPU = DeviceInfo(
    device_id=0,
    kind="gpu",
    index=0,
    vendor=HardwareVendor.NVIDIA,
    name="GPU",
    memory_bytes=80 << 30,
    power_limit_w=500.0,
    power_limit_max_w=700.0,
)


def read(device: DeviceInfo | None = GPU, **values: object) -> tuple[DeviceReading, list[str]]:
    """What is left of a reading, and the quantities that are noted."""
    notes = {}
    devices = {} if device is None else {0: device}
    left = possible_readings({0: DeviceReading(**values)}, devices, notes)[0]
    return left, [quantity for _, quantity in notes]


NUMBERS = [
    field.name
    for field in msgspec.structs.fields(DeviceReading)
    if field.name not in ("throttle_reasons", "xids", "lost", "remap_failed", "remap_pending")
]


@pytest.mark.parametrize(
    "value", [ONES_32, ONES_64, math.nan, math.inf, -1, "N/A", b"", True, [], (1,)], ids=repr
)
@pytest.mark.parametrize("quantity", NUMBERS)
def test_what_no_quantity_can_have(quantity, value):
    assert read(**{quantity: value}) == (DeviceReading(), [quantity])


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("temperature_c", 255),
        ("temperature_c", 65.535e3),
        ("memory_temperature_c", 151),
        ("power_w", 65535),
        ("power_w", 3 * 700.0 + 0.1),
        ("power_limit_w", 0),
        ("power_limit_w", ONES_32 * 1e-3),
        ("utilization", 1.01),
        ("memory_used_bytes", (80 << 30) + 1),
        ("sm_clock_mhz", 65535),
        ("memory_clock_mhz", 65535),
        ("energy_j", ONES_32 * 1e-3),
        ("energy_j", ONES_64 * 1e-3),
        ("energy_j", ONES_64 * 15.3e-6),
        ("throttle_reasons", ONES_64),
        ("throttle_reasons", ("power_cap", 3)),
        ("xids", ("79",)),
        ("remap_failed", 2),
        ("remap_pending", ONES_32),
    ],
)
def test_what_a_quantity_cannot_have(quantity, value):
    assert read(**{quantity: value}) == (DeviceReading(), [quantity])


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("temperature_c", 0),
        ("temperature_c", 150),
        ("power_w", 3 * 700.0),  # a peak, as the specification of cards allows
        ("power_w", 65.535),
        ("power_limit_w", 0.5),
        ("utilization", 1),
        ("memory_used_bytes", 80 << 30),
        ("memory_clock_mhz", 14001),  # GDDR7
        ("energy_j", 4294967.296),
        ("ecc_corrected", (1 << 63) + 1),
        ("nvlink_errors", ONES_64 - 1),
        ("throttle_reasons", ()),
        ("xids", (79,)),
        ("remap_pending", False),
    ],
)
def test_what_is_possible_stays_exactly_as_it_is(quantity, value):
    left, noted = read(**{quantity: value})
    assert noted == []
    assert getattr(left, quantity) is value


def test_the_bounds_that_a_device_sets():
    """Without them only what no device draws is impossible; a laptop's package draws four times its limit."""
    unlimited = replace(GPU, power_limit_w=None, power_limit_max_w=None, memory_bytes=None)
    for device in (unlimited, None):
        assert read(device, power_w=9_000, memory_used_bytes=90 << 30)[1] == []
        assert read(device, power_w=10_001)[1] == ["power_w"]
    assert read(unlimited, power_w=301, power_limit_w=100.0)[1] == ["power_w"]
    assert set(read(unlimited, power_w=301, power_limit_w=math.nan)[1]) == {"power_limit_w"}
    laptop = replace(unlimited, kind="cpu")
    assert read(laptop, power_w=64.0, power_limit_w=15.0)[1] == []


def test_each_quantity_of_each_device_is_noted_once():
    notes = {}
    devices = {0: GPU, 1: replace(GPU, device_id=1)}
    for power_w in (-1, -2):
        readings = {id: DeviceReading(power_w=power_w, utilization="N/A") for id in devices}
        assert possible_readings(readings, devices, notes) == dict.fromkeys(devices, DeviceReading())
    assert [(note.what, note.why) for note in notes.values()] == [
        ("gpu:0: power_w", "-1 is not a possible value"),
        ("gpu:0: utilization", "'N/A' is not a possible value"),
        ("gpu:1: power_w", "-1 is not a possible value"),
        ("gpu:1: utilization", "'N/A' is not a possible value"),
    ]


ANYTHING = st.none() | st.integers() | st.floats() | st.booleans() | st.text(max_size=2) | st.just((1,))


@given(values=st.fixed_dictionaries(dict.fromkeys(DeviceReading.__struct_fields__, ANYTHING)))
def test_whatever_a_driver_answers_only_what_is_possible_is_left(values):
    left, noted = read(**values)
    for name, value in values.items():
        now = getattr(left, name)
        assert is_possible(name, now)
        assert (now is value) == (name not in noted)


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("memory_bytes", 0),
        ("memory_bytes", ONES_64),
        ("compute_units", 0),
        ("compute_units", ONES_32),
        ("boost_clock_mhz", ONES_32),
        ("memory_clock_mhz", -1),
        ("power_limit_w", math.nan),
        ("power_limit_min_w", -1.0),
        ("power_limit_max_w", 0),
        ("slowdown_temperature_c", 255),
        ("slowdown_temperature_c", 0),
        ("mig_enabled", 7),
        ("ecc_enabled", "N/A"),
    ],
)
def test_impossible_facts(quantity, value):
    notes = {}
    assert possible_facts(replace(GPU, **{quantity: value}), notes) == replace(GPU, **{quantity: None})
    assert [note.what for note in notes.values()] == [f"gpu:0: {quantity}"]


def test_impossible_facts_of_what_belongs_to_a_device():
    right = MigInstance(uuid="MIG-1", name=None, memory_bytes=10 << 30, compute_units=16)
    wrong = replace(right, uuid="MIG-2", memory_bytes=ONES_64)
    link = PciLink(address="0000:1b:00.0", generation=ONES_32, generation_max=5, width=0, width_max=16)
    notes = {}
    device = possible_facts(
        replace(GPU, pci=link, mig_instances=(right, wrong), reading=DeviceReading(utilization=2)), notes
    )
    assert device.pci == PciLink(address="0000:1b:00.0", generation_max=5, width_max=16)
    assert device.mig_instances == (right, replace(wrong, memory_bytes=None))
    assert device.reading == DeviceReading()
    assert {note.what for note in notes.values()} == {
        "gpu:0: generation", "gpu:0: width", "gpu:0 MIG-2: memory_bytes", "gpu:0: utilization",
    }  # fmt: skip


@pytest.mark.parametrize("mbit_s", [-1, 0, 65535, ONES_32])
def test_an_interface_without_a_speed(mbit_s):
    assert not is_possible("speed_gbit_s", mbit_s / 1000)
    assert is_possible("speed_gbit_s", 400.0)


def test_a_sum_does_not_hide_an_impossible_counter():
    assert sum_of_counters([1, 1 << 62]) == (1 << 62) + 1
    assert sum_of_counters([1, None]) is None
    assert sum_of_counters([1, ONES_32, None]) == ONES_32


def test_garbage_of_a_driver_is_unknown_in_facts_and_readings(monkeypatch, tmp_path):
    """The note about a reading reaches the node without another discovery."""
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    gpus = [h100(0, GetPowerUsage=ONES_32, GetMaxPcieLinkWidth=ONES_32), h100(1)]
    FakeNvml(monkeypatch, gpus)
    machine = Machine(str(tmp_path), mounts=[])
    assert machine.node.devices[0].pci.width_max is None
    assert [device.current_power_w for device in machine.node.devices] == [None, 123.456]
    gpus[1].answers["GetTemperature"] = 255
    for _ in range(2):
        readings = machine.read().devices
        assert (readings[0].power_w, readings[0].temperature_c, readings[1].temperature_c) == (None, 41, None)
    assert [note.what for note in machine.node.missing] == [
        "gpu:0: width_max",
        "gpu:0: power_w",
        "gpu:1: temperature_c",
    ]
    machine.refresh()
    assert len(machine.node.missing) == 3
