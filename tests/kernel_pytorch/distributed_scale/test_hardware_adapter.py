from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import topologies
import torch
from worlds import World

from kernel_pytorch.distributed_scale.hardware_adapter import (
    DeviceMeshOptimizer,
    HardwareAdapter,
    create_device_mesh_optimizer,
)
from kernel_pytorch.distributed_scale.hardware_discovery import HardwareTopologyManager
from kernel_pytorch.machine.facts import ClusterTopology, HardwareVendor, RankPlace
from kernel_pytorch.machine.readings import DeviceReading, Snapshot

GB = 10**9


class Steady:
    """The same readings over and over, a second apart."""

    def __init__(self, devices: dict[int, DeviceReading]) -> None:
        self.devices, self.time_s = devices, 0.0

    def read(self) -> Snapshot:
        self.time_s += 1
        return Snapshot(time_s=self.time_s, devices=self.devices)


def reading(temperature_c: float = 50.0, used_gb: int | None = 0) -> DeviceReading:
    return DeviceReading(
        temperature_c=temperature_c,
        power_w=100.0,
        power_limit_w=700.0,
        memory_used_bytes=None if used_gb is None else used_gb * GB,
        throttle_reasons=(),
    )


def adapter_of(topology: ClusterTopology, readings: dict[int, DeviceReading] | None = None, **more: object):
    """Over all devices of a topology that is not this machine's; nothing runs on threads."""
    every = {device.device_id: reading() for device in topology.devices} | (readings or {})
    manager = HardwareTopologyManager(False, topology=topology, source=Steady(every))
    return HardwareAdapter(False, topology_manager=manager, **more)  # type: ignore[arg-type]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda as on a machine whose GPUs are 3, 1 and 2, in this order, to torch; the fourth is hidden."""
    state = SimpleNamespace(current=0, visible=[3, 1, 2], set=[])

    def set_device(device: torch.device | int) -> None:
        state.current = device if isinstance(device, int) else device.index
        state.set.append(state.current)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(state.visible))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"{state.visible[i]:08x}")
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    return state


def four_gpus(**facts: object) -> ClusterTopology:
    return topologies.cluster(topologies.node([topologies.gpu(i, **facts) for i in range(4)]))


def test_the_best_device_is_current_meanwhile(gpus: SimpleNamespace):
    adapter = adapter_of(four_gpus(), {1: reading(used_gb=60)})
    gpus.current = 2
    with adapter.optimal_device_context(memory_requirement_gb=40.0) as devices:
        assert devices == [2, 3]  # 0 is hidden, 1 has too little left
        assert gpus.current == 2
    with adapter.optimal_device_context() as devices:
        assert devices == [1, 2, 3]
        assert gpus.current == 1
    assert gpus.current == 2


def test_the_former_device_comes_back_after_an_error(gpus: SimpleNamespace):
    gpus.current = 2

    def fail() -> None:
        with adapter_of(four_gpus()).optimal_device_context():
            assert gpus.current == 1
            raise KeyError("the body")

    with pytest.raises(KeyError, match="the body"):
        fail()
    assert gpus.set == [1, 2]


def test_a_gpu_that_torch_cannot_see_is_no_success(gpus: SimpleNamespace):
    gpus.visible = []
    with (
        pytest.raises(
            ValueError, match=r"torch does not see gpu:0 .*CUDA_VISIBLE_DEVICES or its like hides it"
        ),
        adapter_of(four_gpus()).optimal_device_context(),
    ):
        pass


def test_gpus_that_this_process_may_not_use_are_left_out(gpus: SimpleNamespace):
    hidden = "is hidden by CUDA_VISIBLE_DEVICES=3,1"
    devices = [topologies.gpu(i, hidden=None if i in (1, 3) else hidden) for i in range(4)]
    with adapter_of(topologies.cluster(topologies.node(devices))).optimal_device_context() as usable:
        assert usable == [1, 3]
        assert gpus.current == 1
    with (
        pytest.raises(ValueError, match=f"left out: gpu:0-3 {hidden}"),
        adapter_of(four_gpus(hidden=hidden)).optimal_device_context(),
    ):
        pass


def test_this_machine_without_gpus():
    adapter = HardwareAdapter(enable_monitoring=False)
    try:
        if any(device.kind == "gpu" for device in adapter.topology_manager.cluster_topology.devices):
            pytest.skip("this machine has a GPU")
        with adapter.optimal_device_context() as devices:
            assert devices == list(range(len(devices)))
            assert devices
        with (
            pytest.raises(ValueError, match=r"memory|GB"),
            adapter.optimal_device_context(memory_requirement_gb=1e6),
        ):
            pass
        statistics = adapter.get_cluster_statistics()
        assert statistics["total_nodes"] == 1
        assert statistics["health"]["total_devices"] == statistics["total_devices"] == len(devices)
    finally:
        adapter.shutdown()


def test_what_fits_and_why_the_rest_does_not(caplog: pytest.LogCaptureFixture):
    devices = [
        topologies.gpu(0, memory_bytes=None),
        topologies.gpu(1, peaks=None),
        topologies.gpu(2, memory_bytes=16 * GB),
        topologies.gpu(3, vendor=HardwareVendor.AMD),
        topologies.gpu(4),
        topologies.gpu(5),
    ]
    adapter = adapter_of(
        topologies.cluster(topologies.node(devices)), {4: reading(used_gb=70), 5: reading(used_gb=None)}
    )
    assert adapter.get_optimal_device_placement(0.0) == [0, 1, 2, 3, 4, 5]
    assert adapter.get_optimal_device_placement(0.0, prefer_vendor=HardwareVendor.AMD)[0] == 3
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        assert adapter.get_optimal_device_placement(40.0, 10.0) == [3, 5]
    assert [record.getMessage() for record in caplog.records] == [
        "left out: device 0 has memory of unknown size",
        "left out: device 1 has an unknown peak rate",
        "left out: device 2 has 16.0 GB free, less than 40 GB",
        "left out: device 4 has 15.5 GB free, less than 40 GB",
    ]
    with pytest.raises(ValueError, match=r"of 6 devices 0 fit; .*gpu:4 has 15.5 GB free, less than 100 GB"):
        adapter.get_optimal_device_placement(100.0)
    with pytest.raises(ValueError, match="gpu:1 has an unknown peak rate"):
        adapter.get_optimal_device_placement(0.0, 1000.0)


def test_failed_devices_are_not_offered_and_degraded_ones_last():
    adapter = adapter_of(four_gpus(), {0: reading(temperature_c=50), 1: DeviceReading(remap_failed=True)})
    states = adapter.health_monitor.get_device_health_status()["device_details"]
    assert states[1] == "failed"
    assert adapter.get_optimal_device_placement(0.0) == [0, 2, 3]


def test_jobs_get_cool_devices_of_their_own_in_the_order_of_their_links():
    hot = {i: reading(temperature_c=84.0) for i in (2, 4, 5, 7)}
    adapter = adapter_of(topologies.uneven_sockets(), hot)
    first = adapter.optimize_for_workload("first", 4)
    assert first["success"]
    assert sorted(first["devices"]) == [0, 1, 3, 6]
    assert "gpu:0-1, gpu:3, gpu:6" in first["placement"]
    second = adapter.optimize_for_workload("second", 2)
    assert second["success"]
    assert not set(second["devices"]) & set(first["devices"])
    third = adapter.optimize_for_workload("third", 3)
    assert (third["success"], third["devices"]) == (False, [])
    assert third["error"]
    assert adapter.thermal_scheduler.release_job("first")
    assert adapter.optimize_for_workload("third", 3)["success"]


def test_devices_that_cannot_work_together_are_given_back():
    vendors = [HardwareVendor.NVIDIA, HardwareVendor.AMD]
    devices = [topologies.gpu(i, vendor=vendors[i]) for i in range(2)]
    adapter = adapter_of(topologies.cluster(topologies.node(devices)))
    result = adapter.optimize_for_workload("mixed", 2)
    assert (result["success"], result["devices"]) == (False, [])
    assert "different kinds do not work together" in result["error"]
    assert adapter.optimize_for_workload("single", 1)["success"]


def test_statistics_and_reports():
    adapter = adapter_of(topologies.dgx_h100())
    statistics = adapter.get_cluster_statistics()
    assert statistics["total_devices"] == 8
    assert statistics["total_memory_gb"] == pytest.approx(8 * 81559 * 2**20 / 1e9)
    assert statistics["vendor_distribution"] == {"nvidia": 8}
    assert statistics["capability_distribution"] == {"9.0": 8}
    assert statistics["thermal"]["power_consumption"] == 800.0
    assert adapter_of(four_gpus(memory_bytes=None)).get_cluster_statistics()["total_memory_gb"] is None
    report = adapter.get_health_report(hours=2)
    assert report["health"]["total_devices"] == 8
    assert report["performance"]["hours"] == 2
    assert set(report["performance"]["devices"]) == set(range(8))
    with pytest.raises(ValueError, match="hours must be positive, got 0"):
        adapter.get_health_report(hours=0)


def telemetry_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "telemetry"]


def test_shutdown_stops_what_was_started_and_may_be_called_again():
    adapter = HardwareAdapter()
    assert adapter.topology_manager.telemetry.running
    adapter.shutdown()
    adapter.shutdown()
    assert not adapter.topology_manager.telemetry.running
    assert not telemetry_threads()


def test_a_manager_that_was_given_goes_on():
    topology = four_gpus()
    manager = HardwareTopologyManager(True, topology=topology, source=Steady({0: reading()}))
    adapter = HardwareAdapter(topology_manager=manager)
    assert adapter.topology_manager is manager
    adapter.shutdown()
    assert manager.telemetry.running
    manager.shutdown()


def test_nothing_is_left_running_where_an_argument_is_wrong():
    with pytest.raises(ValueError, match="-5"):
        HardwareAdapter(power_budget_w=-5.0)
    assert not telemetry_threads()


def test_hints_for_launching_are_printable(capsys: pytest.CaptureFixture[str]):
    optimizer = create_device_mesh_optimizer(adapter_of(topologies.dgx_h100()).topology_manager)
    assert isinstance(optimizer, DeviceMeshOptimizer)
    print(optimizer.launch_hints(8, tensor_parallel_size=4))
    printed = capsys.readouterr().out
    assert "torchrun --nproc-per-node=8 --numa-binding=node" in printed
    assert "local rank 7: gpu:7, NUMA node 1, CPUs 56-111,168-223" in printed


def test_a_mesh_needs_a_process_group():
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group first"):
        adapter_of(topologies.dgx_h100()).create_optimal_device_mesh(8)
    with pytest.raises(ValueError, match="num_devices=6 must be a multiple of 4"):
        adapter_of(topologies.dgx_h100()).create_optimal_device_mesh(6, tensor_parallel_size=4)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(4) as world:
        yield world


def mesh_of(group, sizes: dict[str, int], topology: ClusterTopology | None):
    """Type, names, ranks and device type of the mesh, and the sum over this rank's tensor-parallel group."""
    import torch.distributed as dist

    adapter = HardwareAdapter(enable_monitoring=False) if topology is None else adapter_of(topology)
    try:
        mesh = adapter.create_optimal_device_mesh(4, **sizes)
        value = torch.tensor([10.0 ** dist.get_rank()])
        dist.all_reduce(value, group=mesh["tp"].get_group())
        return type(mesh).__name__, mesh.mesh_dim_names, mesh.mesh.tolist(), mesh.device_type, value.item()
    finally:
        adapter.shutdown()


@pytest.mark.xdist_group("worlds")
@pytest.mark.parametrize(
    ("sizes", "ranks", "sums"),
    [
        ({"tensor_parallel_size": 2}, [[[[0, 1]]], [[[2, 3]]]], [11, 11, 1100, 1100]),
        (
            {"context_parallel_size": 2, "data_parallel_size": 2},
            [[[[0], [1]]], [[[2], [3]]]],
            [1, 10, 100, 1000],
        ),
    ],
    ids=["tp", "dp cp"],
)
def test_a_real_mesh_on_this_machine(world: World, sizes: dict[str, int], ranks: list, sums: list[int]):
    """A CPU machine: the ranks have no devices of their own."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, and the processes of a gloo world none of their own")
    for answer, total in zip(world.results(mesh_of, sizes, None), sums, strict=True):
        assert answer == ("DeviceMesh", ("dp", "pp", "cp", "tp"), ranks, "cpu", total)


def two_machines() -> ClusterTopology:
    """Four ranks, which alternate between them."""
    nodes = [
        topologies.node([topologies.gpu(2 * n + i, kind="cpu") for i in range(2)], node_id=n)
        for n in range(2)
    ]
    places = [
        RankPlace(rank=rank, node_id=rank % 2, local_rank=rank // 2, device_id=2 * (rank % 2) + rank // 2)
        for rank in range(4)
    ]
    return ClusterTopology(nodes=dict(enumerate(nodes)), ranks=tuple(places))


@pytest.mark.xdist_group("worlds")
def test_a_real_mesh_over_two_machines(world: World):
    for rank, answer in enumerate(world.results(mesh_of, {"tensor_parallel_size": 2}, two_machines())):
        assert answer[2] == [[[[0, 2]]], [[[1, 3]]]]
        assert answer[4] == [101, 1010][rank % 2]


@pytest.mark.xdist_group("worlds")
def test_traffic_orders_a_real_mesh_over_two_machines(world: World):
    """The first two send each other most; around a ring all send the same to the next."""
    ring = {"context_parallel_size": 4}
    most = [[0, 9, 1, 1], [9, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    for traffic, order in ((None, [0, 1, 3, 2]), (most, [0, 2, 1, 3])):
        for answer in world.results(mesh_of, {**ring, "traffic": traffic}, two_machines()):
            assert answer[2] == [[[[rank] for rank in order]]]
    told = r"traffic must be of shape \(4, 4\), a row for each place, got \(2, 2\)"
    for error in world.run(mesh_of, {**ring, "traffic": [[0, 1], [1, 0]]}, two_machines()):
        with pytest.raises(ValueError, match=told):
            raise error
