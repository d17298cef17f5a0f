"""The manager: this machine by itself, and the machines of all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import topologies
from fake_nvml import FakeNvml, h100
from worlds import World

from kernel_pytorch.distributed_scale.hardware_discovery import (
    DeviceCapability,
    HardwareTopologyManager,
    ThermalState,
    create_hardware_manager,
)
from kernel_pytorch.machine.readings import DeviceReading, Snapshot


class Readings:
    """A source that has the same readings over and over."""

    def __init__(self, **devices: DeviceReading) -> None:
        self.devices = {int(name[1:]): reading for name, reading in devices.items()}

    def read(self) -> Snapshot:
        return Snapshot(time_s=0.0, devices=self.devices)


def test_this_machine():
    manager = create_hardware_manager(enable_monitoring=False)
    try:
        topology = manager.cluster_topology
        assert list(topology.nodes) == [0]
        assert topology.total_devices == len(list(topology.devices)) >= 1
        assert manager.telemetry.latest is None
        assert set(manager.telemetry.sample().devices) == {device.device_id for device in topology.devices}
        assert manager.discover_topology().nodes[0].packages == topology.nodes[0].packages
        assert manager.get_optimal_device_placement(1) == [0]
        with pytest.raises(ValueError, match="10000"):
            manager.get_optimal_device_placement(10000)
    finally:
        manager.shutdown()
        manager.shutdown()


def test_monitoring_runs_until_the_shutdown():
    manager = create_hardware_manager()
    assert manager.telemetry.running
    manager.shutdown()
    assert not manager.telemetry.running


def test_the_drivers_are_closed_by_the_shutdown(monkeypatch):
    nvml = FakeNvml(monkeypatch, [h100()])
    manager = create_hardware_manager(enable_monitoring=False)
    assert [device.kind for device in manager.cluster_topology.devices] == ["gpu"]
    assert nvml.shut_down == 0
    manager.shutdown()
    manager.shutdown()
    assert nvml.shut_down == 1


def test_a_given_topology():
    topology = topologies.dgx_h100()
    source = Readings(_3=DeviceReading(temperature_c=50.0))
    manager = HardwareTopologyManager(False, topology=topology, source=source)
    assert manager.telemetry.sample().devices[3].temperature_c == 50
    assert manager.discover_topology() is topology
    assert len(manager.get_optimal_device_placement(4, [80.0] * 4)) == 4
    with pytest.raises(ValueError, match="90 GB"):
        manager.get_optimal_device_placement(4, [90.0] * 4)


def test_a_failed_device_is_not_placed():
    source = Readings(_0=DeviceReading(xids=(79,)), _1=DeviceReading(temperature_c=50.0))
    manager = HardwareTopologyManager(False, topology=topologies.dgx_h100(), source=source)
    assert 0 not in manager.get_optimal_device_placement(7)
    with pytest.raises(ValueError, match="gpu:0 failed"):
        manager.get_optimal_device_placement(8)


@pytest.mark.parametrize("given", ["topology", "source"])
def test_topology_and_source_go_together(given):
    argument = {"topology": topologies.dgx_h100(), "source": Readings()}[given]
    with pytest.raises(ValueError, match="topology and source go together"):
        HardwareTopologyManager(False, **{given: argument})


@pytest.mark.parametrize(
    ("temperature_c", "state"),
    [
        (None, None),
        (69.9, ThermalState.OPTIMAL),
        (70, ThermalState.WARM),
        (80, ThermalState.HOT),
        (90, ThermalState.CRITICAL),
    ],
)
def test_thermal_states(temperature_c, state):
    assert ThermalState.of(temperature_c) is state


def test_capabilities():
    assert DeviceCapability.of("9.0") is DeviceCapability.COMPUTE_9_0
    assert DeviceCapability.of("99.0") is None
    assert DeviceCapability.of(None) is None


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


def discovered(group):
    """Each rank says it is on a host of its own; the second's devices then come after the first's."""
    import dataclasses

    manager = HardwareTopologyManager(enable_monitoring=False)
    machine = manager.view.machine
    refresh = machine.refresh
    machine.refresh = lambda: dataclasses.replace(refresh(), boot_id=f"boot {group.rank()}")
    try:
        topology = manager.discover_topology()
        apart = manager.view.own_ids
        read = sorted(manager.telemetry.sample().devices)
        machine.refresh = lambda: dataclasses.replace(refresh(), boot_id="one boot")
        manager.discover_topology()
        return topology, apart, manager.view.own_ids, read, list(manager.view.states())
    finally:
        manager.shutdown()


@pytest.mark.xdist_group("worlds")
def test_all_ranks_discover_one_topology(world):
    first, second = world.results(discovered)
    assert first[0] == second[0]
    each = len(first[0].nodes[0].devices)
    own, theirs = list(range(each)), list(range(each, 2 * each))
    assert [node.boot_id for node in first[0].nodes.values()] == ["boot 0", "boot 1"]
    assert [rank.node_id for rank in first[0].ranks] == [0, 1]
    assert first[1:] == (own, own, own, own)
    assert second[1:] == (theirs, own, own, own)  # inside the node ids stay what they are
