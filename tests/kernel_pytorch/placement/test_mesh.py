"""Ranks in a mesh: on paper, and in process groups of real processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import topologies
from worlds import World

from kernel_pytorch.machine.facts import ClusterTopology, HardwareVendor, RankPlace
from kernel_pytorch.placement import PlacementRequest
from kernel_pytorch.placement.mesh import (
    create_device_mesh,
    gather_health,
    group_of_this_rank,
    mesh_device_type,
    place_ranks,
    worst_health,
)
from kernel_pytorch.watch.health import HealthState


def seated(topology: ClusterTopology, device_ids: list[int | None], node_ids: list[int]) -> ClusterTopology:
    """The topology with rank r on the r-th device and node."""
    local: dict[int, int] = {}
    places = []
    for rank, (device_id, node_id) in enumerate(zip(device_ids, node_ids, strict=True)):
        local[node_id] = local.get(node_id, -1) + 1
        places.append(RankPlace(rank=rank, node_id=node_id, local_rank=local[node_id], device_id=device_id))
    return ClusterTopology(nodes=topology.nodes, ranks=tuple(places))


def crossed_ring() -> ClusterTopology:
    """Four ranks on CPU devices whose fast links make the ring 0, 2, 1, 3."""
    devices = [topologies.gpu(i, kind="cpu") for i in range(4)]
    links = [topologies.nvlink(a, b) for a, b in [(0, 2), (1, 2), (1, 3), (0, 3)]]
    return topologies.cluster(topologies.node(devices, links=links), ranks=True)


def mesh_of(topology: ClusterTopology, request: PlacementRequest) -> np.ndarray:
    """The ranks of a placement in a mesh [dp, pp, cp, tp]."""
    placement = place_ranks(topology, request)
    return np.reshape(placement.device_ids, placement.shape)


def test_ranks_in_order_stay_in_order():
    ranks = mesh_of(topologies.dgx_h100(2), PlacementRequest(num_devices=16, tensor_parallel_size=8))
    assert ranks.shape == (2, 1, 1, 8)
    assert (ranks.ravel() == np.arange(16)).all()


def test_ranks_that_alternate_between_nodes_are_regrouped():
    topology = seated(topologies.uneven_nodes([2, 2], [100.0, 100.0]), [0, 2, 1, 3], [0, 1, 0, 1])
    ranks = mesh_of(topology, PlacementRequest(num_devices=4, tensor_parallel_size=2))
    assert ranks.reshape(2, 2).tolist() == [[0, 2], [1, 3]]


def test_traffic_decides_the_order_of_ranks_on_equally_fast_links():
    """Of four ranks on hosts a b a b."""
    topology = seated(topologies.uneven_nodes([2, 2], [100.0, 100.0]), [0, 2, 1, 3], [0, 1, 0, 1])
    ring = PlacementRequest(num_devices=4, context_parallel_size=4)
    assert place_ranks(topology, ring).device_ids == (0, 1, 3, 2)
    traffic = np.ones((4, 4))
    traffic[0, 2] = traffic[2, 0] = 9
    assert place_ranks(topology, ring, traffic=traffic).device_ids == (0, 1, 2, 3)
    traffic[0, 1] = traffic[1, 0] = 99
    assert place_ranks(topology, ring, traffic=traffic).device_ids == (0, 2, 1, 3)


def test_ranks_follow_their_devices_links_and_health():
    topology = seated(topologies.uneven_sockets(), [7, 6, 5, 4, 3, 2, 1, 0], [0] * 8)
    placement = place_ranks(topology, PlacementRequest(num_devices=4, tensor_parallel_size=2))
    assert placement.device_ids == (1, 6, 4, 7)  # devices 6-1 and 3-0, which bridges join
    failed = {6: HealthState.FAILED}
    placement = place_ranks(topology, PlacementRequest(num_devices=2, tensor_parallel_size=2), failed)
    assert placement.device_ids == (4, 7)
    assert placement.left_out == {1: "failed"}
    named = PlacementRequest(num_devices=2, devices=[7, 6, 2])
    assert place_ranks(topology, named).device_ids == (0, 1)


def test_ranks_without_devices_are_placed_by_node():
    """Six processes on two machines that have one CPU package each, one of them in two NUMA nodes."""
    nodes = {0: topologies.cpu_only(1).nodes[0], 1: replace(topologies.cpu_only(2).nodes[0], node_id=1)}
    topology = seated(ClusterTopology(nodes=nodes), [None] * 6, [0, 1, 0, 1, 0, 1])
    placement = place_ranks(topology, PlacementRequest(num_devices=6, tensor_parallel_size=3))
    assert placement.device_ids == (0, 2, 4, 1, 3, 5)
    assert "assumed to be as far apart as a node allows: cpu:1-cpu:3" in placement.reason
    assert "cpu:0-cpu:2" not in placement.reason  # one NUMA node: they are near
    with pytest.raises(ValueError, match=r"left out: cpu:0-5 has memory of unknown size"):
        place_ranks(topology, PlacementRequest(num_devices=6, memory_gb=1.0))


def test_one_rank_without_a_device_makes_all_of_them_plain():
    topology = seated(topologies.uneven_sockets(), [0, 1, None], [0, 0, 0])
    assert place_ranks(topology, PlacementRequest(num_devices=3)).device_ids == (0, 1, 2)
    assert mesh_device_type(topology) == "cpu"


@pytest.mark.parametrize(
    ("kind", "vendor", "expected"),
    [
        ("gpu", HardwareVendor.NVIDIA, "cuda"),
        ("gpu", HardwareVendor.AMD, "cuda"),
        ("gpu", HardwareVendor.INTEL, "xpu"),
        ("cpu", HardwareVendor.INTEL, "cpu"),
    ],
)
def test_device_types(kind: str, vendor: HardwareVendor, expected: str):
    devices = [topologies.gpu(i, kind=kind, vendor=vendor) for i in range(2)]
    assert mesh_device_type(topologies.cluster(topologies.node(devices), ranks=True)) == expected


@pytest.mark.parametrize(
    ("backends", "expected"),
    [("", "cpu"), ("cpu:gloo,cuda:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cuda"), ("xpu:xccl", "xpu")],
)
def test_the_backend_tells_the_type_of_devices_that_were_not_recognised(backends: str, expected: str):
    assert mesh_device_type(topologies.cpu_only(1, 2), backends) == expected
    assert mesh_device_type(topologies.dgx_h100(), backends) == "cuda"


def test_what_it_takes():
    with pytest.raises(ValueError, match="topology must have ranks"):
        place_ranks(topologies.cpu_only(), PlacementRequest())
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group first"):
        create_device_mesh(topologies.dgx_h100(), PlacementRequest(num_devices=8))


def test_a_pytorch_that_would_sort_the_ranks_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.new_group", lambda ranks: None)  # older ones
    with pytest.raises(
        RuntimeError, match=r"sorts the ranks .* the best mesh is \[\[\[\[0\], \[2\]\]\]\]: use"
    ):
        group_of_this_rank(np.array([[[[0], [2]]]]), 2)


def test_the_worst_that_any_rank_knows_counts():
    healthy, degraded, failed = HealthState.HEALTHY, HealthState.DEGRADED, HealthState.FAILED
    reports = [{0: healthy, 1: degraded, 2: None, 3: None}, {0: failed, 1: healthy, 2: healthy}, {3: None}]
    assert worst_health(reports) == {0: failed, 1: degraded, 2: healthy, 3: None}
    assert worst_health([]) == {}


# In process groups.


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[int, World]]:
    with World(2) as two, World(4) as four:
        yield {2: two, 4: four}


def describe(group, topology, request, health):
    """What the mesh is to this rank: its groups, its coordinates, sums over each dimension."""
    import torch
    import torch.distributed as dist

    mesh = create_device_mesh(topology, request, health)
    sums = {}
    for name in mesh.mesh_dim_names:
        value = torch.tensor([10.0 ** dist.get_rank()])
        dist.all_reduce(value, group=mesh[name].get_group())
        sums[name] = value.item()
    return {
        "type": type(mesh).__name__,
        "device": mesh.device_type,
        "names": mesh.mesh_dim_names,
        "ranks": mesh.mesh.tolist(),
        "groups": {name: dist.get_process_group_ranks(mesh.get_group(name)) for name in mesh.mesh_dim_names},
        "place": [mesh.get_local_rank(name) for name in mesh.mesh_dim_names],
        "sums": sums,
    }


@pytest.mark.xdist_group("worlds")
@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        (topologies.cpu_only(1, 2), {"tensor_parallel_size": 2}),
        (topologies.cpu_only(2, 1), {"pipeline_parallel_size": 2}),
        (topologies.cpu_only(1, 4), {"tensor_parallel_size": 2}),
        (topologies.cpu_only(2, 2), {"context_parallel_size": 2, "pipeline_parallel_size": 2}),
        (crossed_ring(), {"context_parallel_size": 4}),
        (crossed_ring(), {"tensor_parallel_size": 2}),
        (crossed_ring(), {"pipeline_parallel_size": 4}),
        (crossed_ring(), {}),
    ],
    ids=["2 tp", "2 pp", "4 tp 2", "4 pp 2 cp 2", "crossed cp", "crossed tp", "crossed pp", "crossed dp"],
)
def test_a_mesh_sums_over_the_right_ranks(worlds, topology: ClusterTopology, sizes: dict[str, int]):
    size = len(topology.ranks)
    request = PlacementRequest(num_devices=size, **sizes)
    ranks = mesh_of(topology, request)
    answers = worlds[size].results(describe, topology, request, {})
    for rank, answer in enumerate(answers):
        assert (answer["type"], answer["device"]) == ("DeviceMesh", "cpu")
        assert answer["names"] == ("dp", "pp", "cp", "tp")
        assert answer["ranks"] == ranks.tolist()
        (here,) = np.argwhere(ranks == rank).tolist()
        assert answer["place"] == here
        for dimension, name in enumerate(answer["names"]):
            line = ranks[tuple(slice(None) if d == dimension else i for d, i in enumerate(here))].tolist()
            assert answer["groups"][name] == line
            assert answer["sums"][name] == sum(10.0**other for other in line)


def shards(group, topology, request):
    """Shards of a DTensor over a ring whose ranks are not ascending, put together by PyTorch."""
    import torch
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    from kernel_pytorch.links.collectives.groups import timeout_of

    mesh = create_device_mesh(topology, request)["cp"]
    local = torch.tensor([float(mesh.get_local_rank())])
    gathered = DTensor.from_local(local, mesh, [Shard(0)]).full_tensor()
    cut = distribute_tensor(torch.arange(4.0), mesh, [Shard(0)])
    return gathered.tolist(), cut.to_local().tolist(), mesh.get_local_rank(), timeout_of(mesh.get_group())


@pytest.mark.xdist_group("worlds")
def test_shards_are_in_the_order_of_the_mesh(worlds):
    request = PlacementRequest(num_devices=4, context_parallel_size=4)
    assert mesh_of(crossed_ring(), request).ravel().tolist() == [0, 2, 1, 3]
    for gathered, cut, place, timeout in worlds[4].results(shards, crossed_ring(), request):
        assert gathered == [0.0, 1.0, 2.0, 3.0]
        assert timeout.total_seconds() == worlds[4].timeout_s, "that of the world"
        assert cut == [float(place)]


def sum_over_two_dimensions(group, topology, request):
    import torch
    import torch.distributed as dist

    mesh = create_device_mesh(topology, request)["dp", "cp"]._flatten("dp_cp")
    value = torch.tensor([10.0 ** dist.get_rank()])
    dist.all_reduce(value, group=mesh.get_group())
    return value.item()


@pytest.mark.xdist_group("worlds")
def test_flattened_dimensions_sum(worlds):
    request = PlacementRequest(num_devices=4, data_parallel_size=2, context_parallel_size=2)
    assert worlds[4].results(sum_over_two_dimensions, crossed_ring(), request) == [1111.0] * 4


def refused(group, *arguments):
    """What it says to this rank, whose topology and request these are in turn."""
    try:
        create_device_mesh(*(argument[group.rank() % len(argument)] for argument in arguments))
    except (AttributeError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def known_to_all(group):
    return gather_health(
        lambda: {group.rank(): HealthState.DEGRADED, 7: [None, HealthState.FAILED][group.rank() % 2]}
    )


def health_that_fails_on_rank_3(group):
    def read():
        if group.rank() == 3:
            raise OSError("no driver")
        return {}

    try:
        return gather_health(read)
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.xdist_group("worlds")
def test_ranks_tell_each_other_what_they_know(worlds):
    degraded = dict.fromkeys(range(4), HealthState.DEGRADED)
    assert worlds[4].results(known_to_all) == [{**degraded, 7: HealthState.FAILED}] * 4


@pytest.mark.xdist_group("worlds")
def test_health_that_cannot_be_read_on_one_rank_keeps_none_waiting(worlds):
    elsewhere = "RankFailed: rank 3 of 4 cannot read the health of its devices: OSError: no driver"
    assert worlds[4].results(health_that_fails_on_rank_3) == [elsewhere] * 3 + ["OSError: no driver"]


@pytest.mark.xdist_group("worlds")
def test_ranks_that_disagree_find_out(worlds):
    request = PlacementRequest(num_devices=4, context_parallel_size=4)
    other = topologies.cpu_only(1, 4)
    answers = worlds[4].results(refused, [crossed_ring(), crossed_ring(), other, other], [request])
    crossed, plain = "[[[[0], [2], [1], [3]]]]", "[[[[0], [1], [2], [3]]]]"
    both = f"mesh is {crossed} on rank 0 and {plain} on rank 2"
    fix = "give the same request, topology, health and traffic on all ranks"
    assert answers == [f"GroupError: the ranks of the group disagree: {both}: {fix}"] * 4


@pytest.mark.xdist_group("worlds")
def test_an_error_on_one_rank_reaches_all(worlds):
    good, bad = PlacementRequest(num_devices=4), PlacementRequest(num_devices=4, memory_gb=1e9)
    answers = worlds[4].results(refused, [crossed_ring()], [good, good, good, bad])
    assert answers[3].startswith("ValueError: num_devices must be at most 0 here, got 4")
    for answer in answers[:3]:
        assert answer == f"RankFailed: rank 3 of 4 cannot arrange the mesh: {answers[3]}"


@pytest.mark.xdist_group("worlds")
def test_any_error_on_one_rank_reaches_all(worlds):
    request, broken = PlacementRequest(num_devices=4), None
    answers = worlds[4].results(refused, [crossed_ring()], [request], [{}, {}, {}, broken])
    assert answers[3].startswith("AttributeError: ")
    assert answers[:3] == [f"RankFailed: rank 3 of 4 cannot arrange the mesh: {answers[3]}"] * 3


@pytest.mark.xdist_group("worlds")
def test_a_mesh_has_all_ranks_of_the_world(worlds):
    four, two = [topologies.cpu_only(1, 4)], [PlacementRequest(num_devices=2)]
    other_world = "ValueError: topology must have the ranks of the process group, 2, got 4"
    assert worlds[2].results(refused, four, two) == [other_world] * 2
    too_small = "ValueError: num_devices must be the world size, 4, got 2"
    assert worlds[4].results(refused, four, two) == [too_small] * 4
