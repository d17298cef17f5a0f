"""Ids at the edge of the cluster: the node counts from 0, everything that leaves it has the cluster's ids."""

from __future__ import annotations

import pytest
import topologies

from kernel_pytorch.machine.facts import ClusterTopology, DeviceInfo
from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.watch.cluster_view import ClusterView
from kernel_pytorch.watch.health import HealthState

GB = 10**9
BROKEN = DeviceReading(remap_failed=True, memory_used_bytes=5 * GB)


class Same:
    def __init__(self, **readings: DeviceReading) -> None:
        self._readings = {int(name[1:]): reading for name, reading in readings.items()}

    def read(self) -> Snapshot:
        return Snapshot(time_s=0.0, devices=self._readings)


def gpu(device_id: int, used_bytes: int | None = None, memory_bytes: int | None = 80 * GB) -> DeviceInfo:
    reading = DeviceReading(memory_used_bytes=used_bytes)
    return topologies.gpu(device_id, reading=reading, memory_bytes=memory_bytes)


def second_of_two() -> ClusterView:
    """A node of three GPUs, of which 1 failed; then a node of two turns out to come before it."""
    view = ClusterView(
        topologies.cluster(topologies.node([gpu(n) for n in range(3)])),
        Same(
            _0=DeviceReading(temperature_c=50.0, memory_used_bytes=0),
            _1=BROKEN,
            _2=DeviceReading(temperature_c=50.0),
        ),
    )
    before = topologies.node([gpu(0, 30 * GB), gpu(1)])
    own = topologies.node([gpu(2, 7 * GB), gpu(3, 7 * GB), gpu(4, 7 * GB)], node_id=1)
    view.topology, view.first_id = topologies.cluster(before, own), 2
    return view


def test_a_node_in_a_cluster_has_the_clusters_ids():
    view = second_of_two()
    assert view.own_ids == [device.device_id for device in view.own_devices] == [2, 3, 4]
    assert view.states() == {
        0: None,
        1: None,
        2: HealthState.HEALTHY,
        3: HealthState.FAILED,
        4: HealthState.HEALTHY,
    }
    assert view.device_health()[1].reason == "it is in another node, which watches it itself"
    assert {name for name in view.health() if name.startswith("gpu")} == {"gpu:2", "gpu:3", "gpu:4"}
    assert view.health()["gpu:3"].state is HealthState.FAILED


def test_ids_that_come_in_are_checked():
    view = second_of_two()
    assert [view.node_id_of(device_id) for device_id in (2, 3, 4)] == [0, 1, 2]
    with pytest.raises(ValueError, match="device_id 1: it is in another node"):
        view.node_id_of(1)
    for device_id in (-1, 5):
        with pytest.raises(ValueError, match=rf"device_id must be one of \[0, 1, 2, 3, 4\], got {device_id}"):
            view.node_id_of(device_id)


def test_free_memory_is_that_of_the_latest_reading_else_of_the_discovery():
    view = second_of_two()
    assert view.free_bytes() == {0: 50 * GB, 2: 73 * GB, 3: 73 * GB, 4: 73 * GB}
    view.watch.now()  # GPU 4 does not tell its memory any more: it is unknown now
    assert view.free_bytes() == {0: 50 * GB, 2: 80 * GB, 3: 75 * GB}


def test_memory_of_unknown_size_has_no_free_bytes():
    topology = topologies.cluster(topologies.node([gpu(0, 0, None), gpu(1, 0)]))
    assert ClusterView(topology, Same()).free_bytes() == {1: 80 * GB}


def test_a_given_topology_of_several_nodes_keeps_its_ids():
    topology: ClusterTopology = topologies.cluster(
        topologies.node([gpu(4)]), topologies.node([gpu(7)], node_id=1)
    )
    view = ClusterView(topology, Same(_4=BROKEN))
    assert view.own_ids == [4, 7]
    assert view.discover() is topology
    assert view.states() == {4: HealthState.FAILED, 7: None}
    assert view.node_id_of(7) == 7
