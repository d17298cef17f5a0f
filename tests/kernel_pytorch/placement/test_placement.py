"""Placement against a brute force that shares no code with it, and on machines whose answer is known."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product
from math import prod
from random import Random

import pytest
import topologies
from hwloc import lstopo_xml, read_hwloc_xml
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_pytorch.machine.facts import (
    ClusterTopology,
    DeviceInfo,
    DeviceLink,
    HardwareVendor,
    LinkKind,
    NodeTopology,
)
from kernel_pytorch.placement import Placement, PlacementRequest, place, rank_devices
from kernel_pytorch.placement.link_costs import PairLink
from kernel_pytorch.watch.health import HealthState

HEALTHY, DEGRADED, FAILED = HealthState.HEALTHY, HealthState.DEGRADED, HealthState.FAILED
Shape = tuple[int, int, int, int]


def request_for(shape: Shape, **more: object) -> PlacementRequest:
    return PlacementRequest(
        data_parallel_size=shape[0],
        pipeline_parallel_size=shape[1],
        context_parallel_size=shape[2],
        tensor_parallel_size=shape[3],
        **more,  # type: ignore[arg-type]
    )


# The oracle: every permutation of every group of devices, scored by the definition.


def network_gbit_s(node: NodeTopology) -> float | None:
    speeds = [
        nic.speed_gbit_s
        for nic in node.network_interfaces
        if nic.kind in ("ethernet", "infiniband", "roce") and nic.carrier in (True, None) and nic.speed_gbit_s
    ]
    return max(speeds) if speeds else None


def quality(topology: ClusterTopology, a: DeviceInfo, b: DeviceInfo) -> tuple[int, float]:
    node_a, node_b = topology.node_of(a.device_id), topology.node_of(b.device_id)
    if node_a is not node_b:
        one, other = network_gbit_s(node_a), network_gbit_s(node_b)
        return (0, -1.0 if one is None or other is None else min(one, other) / 8)
    for link in node_a.links:
        if {link.a, link.b} == {a.device_id, b.device_id}:
            return (4 - int(link.kind), -1.0 if link.gb_s is None else link.gb_s)
    near = a.numa_node is not None and a.numa_node == b.numa_node
    return (4 - int(LinkKind.HOST_BRIDGE if near else LinkKind.SOCKET), -1.0)


def talking(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """(dimension, position, position) for all pairs that use a link, by the coordinates of both."""
    at = list(product(*map(range, shape)))
    for i, j in combinations(range(len(at)), 2):
        differ = [k for k in range(4) if at[i][k] != at[j][k]]
        if len(differ) != 1:
            continue
        k = differ[0]
        apart, size = abs(at[i][k] - at[j][k]), shape[k]
        neighbours = apart == 1 or (k == 2 and apart == size - 1)
        if k in (0, 3) or neighbours:
            yield ["dp", "pp", "cp", "tp"][k], i, j


def usable_gb(device: DeviceInfo, together: bool) -> float | None:
    if not device.mig_enabled:
        return None if device.memory_bytes is None else device.memory_bytes / 1e9
    sizes = [instance.memory_bytes for instance in device.mig_instances]
    return max(sizes) / 1e9 if sizes and not together else -1.0


def hops(shape: Shape) -> list[list[float]]:
    """What is sent where nothing else is known, coordinate by coordinate."""
    at = list(product(*map(range, shape)))
    sent = [[0.0] * len(at) for _ in at]
    for i, here in enumerate(at):
        for k in range(4):
            last = here[k] == shape[k] - 1
            if shape[k] > 1 and not (k == 1 and last):
                there = (*here[:k], 0 if last else here[k] + 1, *here[k + 1 :])
                sent[i][at.index(there)] += 1
    return sent


def busiest(topology: ClusterTopology, chosen: Sequence[DeviceInfo], sent: list[list[float]]) -> float:
    """The most that a node sends to others, or receives from them."""
    homes = [topology.node_of(device.device_id).node_id for device in chosen]
    loads: dict[tuple[str, int], float] = {}
    for i, a in enumerate(homes):
        for j, b in enumerate(homes):
            if a != b:
                for link in (("out", a), ("in", b)):
                    loads[link] = loads.get(link, 0.0) + sent[i][j]
    return max(loads.values(), default=0.0)


def brute_force(topology, shape, needs_gb, health, prefer, sent):
    """The best score, with the ids that have it; None if no assignment is possible."""
    pairs = list(talking(shape))
    size = shape[0] * shape[1] * shape[2] * shape[3]
    usable = [d for d in topology.devices if health.get(d.device_id) is not FAILED]
    best = None
    for chosen in permutations(usable, size):
        if len({(d.kind, d.vendor if d.kind == "gpu" else None) for d in chosen}) > 1:
            continue
        memory = [usable_gb(d, size > 1) for d in chosen]
        if any(m == -1.0 for m in memory):
            continue
        if any(n > (0.0 if m is None else m) for m, n in zip(memory, needs_gb, strict=True)):
            continue
        slowest = {"tp": (9, 0.0), "cp": (9, 0.0), "pp": (9, 0.0), "dp": (9, 0.0)}
        for dimension, i, j in pairs:
            slowest[dimension] = min(slowest[dimension], quality(topology, chosen[i], chosen[j]))
        states = [health.get(d.device_id) for d in chosen]
        score = (
            chosen[0].kind == "gpu" and chosen[0].vendor is prefer,
            chosen[0].kind == "gpu",
            -states.count(DEGRADED),
            *(slowest[name] for name in ("tp", "cp", "pp", "dp")),
            -round(busiest(topology, chosen, sent), 6),
            -states.count(None),
            [-d.device_id for d in chosen],
        )
        if best is None or score > best[0]:
            best = (score, tuple(d.device_id for d in chosen))
    return best


SHAPES = [
    *[(1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 3), (2, 1, 1, 1), (1, 1, 4, 1), (1, 4, 1, 1), (1, 1, 5, 1)],
    *[(2, 1, 1, 2), (1, 2, 1, 2), (1, 1, 2, 2), (2, 1, 2, 1), (1, 2, 2, 1), (1, 3, 1, 2), (3, 1, 1, 2)],
    *[(2, 1, 1, 3), (1, 1, 3, 2), (2, 3, 1, 1), (1, 1, 1, 5), (1, 1, 6, 1), (1, 6, 1, 1)],
]


def draw_machine(random: Random) -> ClusterTopology:
    """Up to six devices on up to three nodes, with whatever links; half of the time the nodes are alike."""
    sizes = random.choice([[2], [4], [5], [6], [6], [3, 2], [3, 3], [3, 3], [4, 2], [2, 2, 2], [3, 1, 2]])
    alike, odd = random.random() < 0.5, random.random() < 0.3
    kinds: list[LinkKind | None] = random.sample([*LinkKind, None], random.choice([1, 2, 2, 5]))
    rates = random.choice([[None], [None, 25.0, 50.0]])
    pattern = {pair: (random.choice(kinds), random.choice(rates)) for pair in combinations(range(6), 2)}
    speeds = random.choice([[100.0], [None, 100.0, 400.0]])
    nodes, first = [], 0
    for number, size in enumerate(sizes):
        devices = [
            draw_odd_device(random, i) if odd else topologies.gpu(i, numa_node=random.choice([0, 0, 1, None]))
            for i in range(first, first + size)
        ]
        links = []
        for a, b in combinations(range(size), 2):
            kind, rate = pattern[a, b] if alike else (random.choice(kinds), random.choice(rates))
            if kind is not None:
                links.append(DeviceLink(a=first + a, b=first + b, kind=kind, gb_s=rate))
        nics = topologies.infiniband([random.choice(speeds)], [0])
        nodes.append(topologies.node(devices, node_id=number, links=links, interfaces=nics, cpus=[(0,)] * 3))
        first += size
    return topologies.cluster(*nodes)


def draw_odd_device(random: Random, device_id: int) -> DeviceInfo:
    kind, cut = random.choice([("gpu", None)] * 6 + [("gpu", 0), ("gpu", 2), ("cpu", None)])
    return topologies.gpu(
        device_id,
        kind=kind,
        vendor=random.choice([HardwareVendor.NVIDIA] * 3 + [HardwareVendor.AMD]),
        numa_node=random.choice([0, 1, None]),
        memory_bytes=random.choice([None, 16 * 10**9, 80 * 10**9]),
        mig_enabled=cut is not None,
        mig_instances=topologies.mig().nodes[0].devices[0].mig_instances[: cut or 0],
    )


@settings(max_examples=500)
@given(seed=st.integers(0, 2**32 - 1))
def test_placement_is_what_a_brute_force_finds(seed: int):
    """All is drawn from the seed: what hypothesis draws by itself is too regular to reach the corners."""
    random = Random(seed)
    topology = draw_machine(random)
    count = topology.total_devices
    shape = random.choice([s for s in SHAPES if count // 2 <= s[0] * s[1] * s[2] * s[3] <= count])
    size = shape[0] * shape[1] * shape[2] * shape[3]
    states = random.choice([[None], [HEALTHY, None, None], [HEALTHY, None, HEALTHY, None, DEGRADED, FAILED]])
    health = {i: state for i in range(count) if (state := random.choice(states)) is not None}
    uniform = random.random() < 0.6
    needs_gb = [random.choice([0.0, 10.0, 40.0]) for _ in range(size)]
    needs_gb = needs_gb[:1] * size if uniform else needs_gb
    prefer = random.choice([None, None, HardwareVendor.AMD])
    request = request_for(shape, memory_gb=needs_gb[0] if uniform else needs_gb, prefer_vendor=prefer)
    traffic = None
    if random.random() < 0.5:
        amounts = random.choice([[0.0, 1.0], [0.0, 0.1, 0.7, 3.0], [1e9, 2e9]])
        traffic = [[random.choice(amounts) for _ in range(size)] for _ in range(size)]

    expected = brute_force(topology, shape, needs_gb, health, prefer, traffic or hops(shape))
    if expected is None:
        with pytest.raises(ValueError, match=r"num_devices must be at most|memory_gb=\["):
            place(topology, request, health, traffic=traffic)
        return
    placement = place(topology, request, health, traffic=traffic)
    assert placement.exact
    assert placement.links_exact
    assert placement.busiest_host_link == pytest.approx(-expected[0][7])
    assert placement.device_ids == expected[1]
    for name, slowest in zip(("tp", "cp", "pp", "dp"), expected[0][3:7], strict=True):
        found = placement.slowest[name]
        names = ["network", "socket", "host_bridge", "pcie_switch", "nvlink"]
        assert (found is None) == (slowest[0] == 9)
        assert found is None or (names.index(found.name), found.gb_s or -1.0) == slowest


@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 1, 2, 4), (1, 2, 4, 1)], ids=str)
@pytest.mark.parametrize("name", ["eight_pcie", "uneven_sockets"])
def test_eight_devices_against_brute_force(name: str, shape: Shape):
    """Only the score: trying all is slow enough without their names."""
    topology = topologies.EVERY[name]()
    devices = list(topology.devices)
    table = [[quality(topology, a, b) if a is not b else (9, 0.0) for b in devices] for a in devices]
    pairs = [[(i, j) for d, i, j in talking(shape) if d == name] for name in ("tp", "cp", "pp", "dp")]

    def score(order):
        return [min((table[order[i]][order[j]] for i, j in along), default=(9, 0.0)) for along in pairs]

    best = max(score((0, *rest)) for rest in permutations(range(1, 8)))
    if shape[1] > 1 or shape[2] > 2:  # where it matters which device is the first
        best = max(best, *(score(order) for order in permutations(range(8)) if order[0]))
    placement = place(topology, request_for(shape))
    assert placement.exact
    assert score(placement.device_ids) == best


@pytest.mark.parametrize(
    ("shape", "slowest"),
    [
        ((16, 1, 1, 8), {"tp": "nvlink", "dp": "network"}),
        ((4, 2, 2, 8), {"tp": "nvlink", "cp": "network", "pp": "network", "dp": "network"}),
        ((8, 4, 1, 4), {"tp": "nvlink", "pp": "network", "dp": "network"}),
        ((16, 1, 2, 4), {"tp": "nvlink", "cp": "nvlink", "dp": "network"}),
    ],
    ids=str,
)
def test_sixteen_dgx_are_proved_and_kept_in_order(
    shape: Shape, slowest: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """Without a single dead end: each question takes the 128 steps that an assignment has, or none."""
    monkeypatch.setattr("kernel_pytorch.placement.search._MAX_STEPS", 128)
    placement = place(topologies.dgx_h100(16), request_for(shape))
    assert placement.links_exact
    # Which groups share a node is not decided in as many steps.
    assert placement.exact == (shape != (8, 4, 1, 4))
    assert placement.device_ids == tuple(range(128))
    assert {name: link.name for name, link in placement.slowest.items() if link} == slowest
    assert placement.slowest["dp"].gb_s == 50.0  # 400 Gbit/s


def test_the_fewest_devices_of_unknown_health_are_proved():
    """GPU 3 failed, 70 is degraded, 4 to 59 are healthy: 14 tensor-parallel groups of four.

    The other 16 of 30 groups are all of unknown health.
    """
    health = {3: FAILED, 70: DEGRADED, **dict.fromkeys(range(4, 60), HEALTHY)}
    placement = place(topologies.dgx_h100(16), request_for((30, 1, 1, 4)), health)
    assert placement.exact
    assert sum(health.get(device_id) is None for device_id in placement.device_ids) == 64


def test_nodes_of_unknown_health_are_proved_to_be_needed():
    """Six nodes are healthy and a seventh half: eight groups of eight need 4 + 8 unknown devices."""
    health = {3: FAILED, 70: DEGRADED, **dict.fromkeys(range(4, 60), HEALTHY)}
    placement = place(topologies.dgx_h100(16), request_for((8, 1, 1, 8)), health)
    assert placement.exact
    assert placement.device_ids == (*range(8, 64), *range(72, 80))


@pytest.mark.parametrize(
    ("shape", "steps"),
    [((8, 1, 1, 1), 200), ((1, 1, 1, 8), 200), ((1, 1, 8, 1), 200), ((2, 4, 1, 1), 100)],
    ids=["dp", "tp", "cp", "pp"],
)
def test_symmetries_of_the_mesh_save_steps(shape: Shape, steps: int, monkeypatch: pytest.MonkeyPatch):
    """Every pair has another rate. Without these symmetries: 25442, 25442, 974 and 125 steps a question."""
    monkeypatch.setattr("kernel_pytorch.placement.search._MAX_STEPS_FOR_EIGHT", steps)
    rates = {(a, b): float(10 + (a * 31 + b * 17) * (a + b) % 89) for a, b in combinations(range(8), 2)}
    topology = topologies.uneven_nodes([8], [None])
    assert place(topology, request_for(shape), measured_gb_s=rates).exact


@pytest.mark.parametrize(("shape", "steps"), [((1, 2, 2, 2), 300), ((1, 1, 8, 1), 130)], ids=str)
def test_twins_save_steps(shape: Shape, steps: int, monkeypatch: pytest.MonkeyPatch):
    """GPUs 2, 4 and 5 can stand in for each other. Without this: 1225 and 526 steps a question."""
    monkeypatch.setattr("kernel_pytorch.placement.search._MAX_STEPS_FOR_EIGHT", steps)
    assert place(topologies.uneven_sockets(), request_for(shape)).exact


def deal(num_devices: int, num_nodes: int) -> ClusterTopology:
    """Devices dealt to nodes like cards; within a node and between nodes all links are as fast."""
    nodes = []
    for node_id in range(num_nodes):
        devices = [topologies.gpu(i, numa_node=0) for i in range(node_id, num_devices, num_nodes)]
        nics = topologies.infiniband([100.0], [0])
        nodes.append(topologies.node(devices, node_id=node_id, interfaces=nics))
    return topologies.cluster(*nodes)


def orders_by_host(topology: ClusterTopology) -> Iterator[list[int]]:
    """One order of all devices for each way to give their places to nodes."""
    left = {node.node_id: [device.device_id for device in node.devices] for node in topology.nodes.values()}

    def extend(order: list[int]) -> Iterator[list[int]]:
        if not any(left.values()):
            yield order
        for devices in left.values():
            if devices:
                device = devices.pop()
                yield from extend([*order, device])
                devices.append(device)

    return extend([])


def test_a_ring_crosses_between_hosts_as_rarely_as_it_can():
    placement = place(deal(4, 2), PlacementRequest(num_devices=4))
    assert (placement.device_ids, placement.busiest_host_link, placement.exact) == ((0, 1, 3, 2), 1.0, True)
    many = place(deal(32, 4), request_for((1, 1, 32, 1)))
    assert (many.busiest_host_link, many.exact) == (1.0, True)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_busiest_host_link_carries_no_more_than_in_any_order(seed: int):
    """Up to eight devices. Of the orders only the hosts count, all links being equally fast."""
    random = Random(seed)
    size, num_nodes = random.randint(2, 8), random.randint(2, 4)
    topology = deal(size, num_nodes)
    shape = random.choice([(size, 1, 1, 1), (1, size, 1, 1), (1, 1, size, 1), (1, 1, 1, size)])
    sent = [[float(random.choice([0, 0, 1, 2, 5])) for _ in range(size)] for _ in range(size)]
    devices = sorted(topology.devices, key=lambda device: device.device_id)
    least = min(busiest(topology, [devices[i] for i in order], sent) for order in orders_by_host(topology))
    placement = place(topology, request_for(shape), traffic=sent)
    assert placement.exact
    assert placement.busiest_host_link == least
    assert busiest(topology, [devices[i] for i in placement.device_ids], sent) == least


def given_up(topology: ClusterTopology, shape: Shape, sent: list[list[float]]) -> Placement:
    """What is found by a search that ends with the first assignment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernel_pytorch.placement.search._MAX_STEPS", topology.total_devices)
        patch.setattr("kernel_pytorch.links.order.MOST_ASSIGNMENTS", 0)
        return place(topology, request_for(shape), traffic=sent)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(1, 1, 9, 1), (1, 1, 10, 1), (1, 1, 2, 6)]))
def test_where_the_search_gives_up_it_is_never_worse_than_ascending(seed: int, shape: Shape):
    """In the mesh of tp 6 and cp 2, ranks of a ring share a node, those of a tensor-parallel group cannot."""
    random, size = Random(seed), prod(shape)
    topology = deal(size, 3)
    sent = [[float(random.choice([0, 1, 2, 5])) for _ in range(size)] for _ in range(size)]
    ascending = sorted(topology.devices, key=lambda device: device.device_id)
    assert given_up(topology, shape, sent).busiest_host_link <= busiest(topology, ascending, sent)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_where_the_search_gives_up_it_claims_no_proof(seed: int):
    random = Random(seed)
    topology = deal(10, 2)
    sent = [[float(random.choice([0, 1, 2, 5])) for _ in range(10)] for _ in range(10)]
    devices = sorted(topology.devices, key=lambda device: device.device_id)
    least = min(busiest(topology, [devices[i] for i in order], sent) for order in orders_by_host(topology))
    placement = given_up(topology, (1, 1, 10, 1), sent)
    assert placement.busiest_host_link >= least
    assert placement.links_exact
    if placement.exact:
        assert placement.busiest_host_link == least
    else:
        assert "no other choice has faster ones, but others may send less between hosts" in placement.reason


def test_nodes_of_one_host_share_its_link():
    """A batch system shows each rank of a host its own GPU, so that they look like nodes."""
    nodes = [topologies.node([topologies.gpu(i, index=0)], node_id=i) for i in range(4)]
    hosts = [topologies.replace(node, boot_id=f"boot-{node.node_id % 2}") for node in nodes]
    assert place(topologies.cluster(*nodes), PlacementRequest(num_devices=4)).device_ids == (0, 1, 2, 3)
    assert place(topologies.cluster(*hosts), PlacementRequest(num_devices=4)).device_ids == (0, 1, 3, 2)


@pytest.mark.parametrize(
    ("traffic", "told"),
    [
        ([[0.0] * 3] * 3, r"traffic must be of shape \(4, 4\), a row for each place, got \(3, 3\)"),
        ([[-1.0] * 4] * 4, "traffic must have bytes, finite and not negative"),
        ([[float("inf")] * 4] * 4, "traffic must have bytes, finite and not negative"),
    ],
    ids=["shape", "negative", "infinite"],
)
def test_traffic_that_is_none(traffic: list[list[float]], told: str):
    with pytest.raises(ValueError, match=told):
        place(topologies.dgx_h100(), PlacementRequest(num_devices=4), traffic=traffic)


def test_numa_and_switches_decide_without_nvlink():
    placement = place(topologies.eight_pcie(), PlacementRequest(num_devices=8, tensor_parallel_size=4))
    assert placement.device_ids == tuple(range(8))
    assert placement.slowest["tp"].name == "host_bridge"
    assert placement.slowest["dp"].name == "socket"


def test_bridges_between_odd_pairs_become_tensor_parallel_groups():
    placement = place(topologies.uneven_sockets(), PlacementRequest(num_devices=4, tensor_parallel_size=2))
    assert placement.device_ids == (0, 3, 1, 6)
    assert placement.slowest["tp"].gb_s == 100.0
    assert "not needed: gpu:2, gpu:4-5, gpu:7" in placement.reason


def test_groups_of_three_fit_into_uneven_nodes():
    topology = topologies.uneven_nodes([5, 3, 8], [200.0, None, 400.0])
    placement = place(topology, PlacementRequest(num_devices=12, tensor_parallel_size=3))
    assert placement.device_ids == (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    assert placement.slowest["dp"].name == "network"
    assert placement.slowest["dp"].gb_s is None  # of the second node no speed is known
    fewer = place(topology, PlacementRequest(num_devices=9, tensor_parallel_size=3))
    assert fewer.device_ids == (0, 1, 2, 8, 9, 10, 11, 12, 13)
    assert fewer.slowest["dp"].gb_s == 25.0


def test_interfaces_that_are_down_or_virtual_do_not_count():
    nics = topologies.infiniband([400.0, 100.0], [0, 0])
    down = [topologies.replace(nics[0], carrier=False), nics[1], topologies.replace(nics[0], kind="virtual")]
    nodes = [topologies.node([topologies.gpu(i, index=0)], node_id=i, interfaces=down) for i in range(2)]
    placement = place(topologies.cluster(*nodes), PlacementRequest(num_devices=2))
    assert placement.slowest["dp"].gb_s == 12.5


def test_unknown_numa_nodes_are_assumed_far_apart_and_it_says_so():
    devices = [topologies.gpu(0), topologies.gpu(1, numa_node=None), topologies.gpu(2)]
    topology = topologies.cluster(topologies.node(devices))
    near = place(topology, PlacementRequest(num_devices=2))
    assert (near.device_ids, near.slowest["dp"].name) == ((0, 2), "host_bridge")
    every = place(topology, PlacementRequest(num_devices=3))
    assert every.slowest["dp"].name == "socket"
    assert "assumed to be as far apart as a node allows: gpu:0-gpu:1, gpu:1-gpu:2" in every.reason


def test_failed_devices_are_left_out_and_degraded_ones_come_last():
    topology, request = topologies.dgx_h100(), PlacementRequest(num_devices=6)
    placement = place(topology, request, {0: FAILED, 1: DEGRADED, 2: HEALTHY})
    assert placement.device_ids == (2, 3, 4, 5, 6, 7)
    assert placement.left_out == {0: "failed"}
    assert "left out: gpu:0 failed; not needed: gpu:1" in placement.reason
    assert "of unknown health: gpu:3-7" in placement.reason
    needed = place(topology, request, {0: FAILED, 1: DEGRADED, 7: DEGRADED})
    assert needed.device_ids == (1, 2, 3, 4, 5, 6)
    assert "degraded, but needed: gpu:1" in needed.reason


def test_known_health_decides_between_equals_but_not_against_a_link():
    pcie = topologies.eight_pcie()
    assert place(pcie, PlacementRequest(num_devices=2), {4: HEALTHY, 5: HEALTHY}).device_ids == (4, 5)
    assert place(pcie, PlacementRequest(num_devices=2), {3: HEALTHY, 4: HEALTHY}).device_ids == (2, 3)


@pytest.mark.parametrize(
    ("memory_gb", "expected"), [(5.0, (0,)), (20.0, (2,)), (0.0, (0,))], ids=["fits", "too large", "none"]
)
def test_an_instance_of_a_gpu_serves_alone(memory_gb: float, expected: tuple[int, ...]):
    placement = place(topologies.mig(), PlacementRequest(num_devices=1, memory_gb=memory_gb))
    assert placement.device_ids == expected
    assert placement.left_out[1] == "is in MIG mode without an instance"


def test_gpus_in_mig_mode_do_not_join_others():
    with pytest.raises(ValueError, match=r"got 2: of 3 devices 1 fit; left out: gpu:0 is in MIG mode"):
        place(topologies.mig(), PlacementRequest(num_devices=2))


def test_free_memory_counts_where_it_is_known():
    topology = topologies.dgx_h100()
    free = {0: 3_100_000_000, 1: 60_000_000_000}
    placement = place(topology, PlacementRequest(memory_gb=8.0), free_bytes=free)
    assert placement.device_ids == (1,)
    assert placement.left_out == {0: "has 3.1 GB free, less than 8 GB"}
    more = place(topology, PlacementRequest(memory_gb=70.0), free_bytes=free)
    assert (more.device_ids, more.left_out[1]) == ((2,), "has 60.0 GB free, less than 70 GB")
    needs = PlacementRequest(num_devices=2, memory_gb=[70.0, 50.0], devices=[0, 1, 2])
    assert place(topology, needs, free_bytes=free).device_ids == (2, 1)
    with pytest.raises(ValueError, match=r"left out: gpu:0-7 has 1\.0 GB free, less than 2 GB"):
        place(topology, PlacementRequest(memory_gb=2.0), free_bytes=dict.fromkeys(range(8), 10**9))


def test_memory_that_just_suffices():
    topology = topologies.cluster(topologies.node([topologies.gpu(0, memory_bytes=80 * 10**9)]))
    assert place(topology, PlacementRequest(memory_gb=80.0)).device_ids == (0,)
    assert place(topology, PlacementRequest(memory_gb=8.0), free_bytes={0: 8 * 10**9}).device_ids == (0,)


def test_free_memory_makes_up_for_a_total_that_is_not_known():
    topology = topologies.cluster(topologies.node([topologies.gpu(0, memory_bytes=None)]))
    request = PlacementRequest(memory_gb=8.0)
    with pytest.raises(ValueError, match="gpu:0 has memory of unknown size"):
        place(topology, request)
    assert place(topology, request, free_bytes={0: 9 * 10**9}).device_ids == (0,)


@pytest.mark.parametrize(
    ("free_bytes", "memory_gb", "why"),
    [
        (80 * 10**9, 10.0, None),
        (80 * 10**9, 20.0, "has 10.5 GB, less than 20 GB"),
        (4 * 10**9, 10.0, "has 4.0 GB free, less than 10 GB"),
    ],
    ids=["fits", "instance too small", "GPU too full"],
)
def test_an_instance_has_no_more_free_than_its_gpu(free_bytes: int, memory_gb: float, why: str | None):
    request = PlacementRequest(memory_gb=memory_gb)
    placement = place(topologies.mig(), request, free_bytes={0: free_bytes})
    assert placement.left_out.get(0) == why
    assert placement.device_ids == ((0,) if why is None else (2,))


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_ranking_is_what_placing_one_device_after_the_other_gives(seed: int):
    random = Random(seed)
    topology = draw_machine(random)
    ids = range(topology.total_devices)
    health = {i: random.choice([HEALTHY, None, DEGRADED, FAILED]) for i in ids}
    free = {i: random.choice([5, 20, 90]) * 10**9 for i in ids if random.random() < 0.5}
    asked = {
        "memory_gb": random.choice([0.0, 10.0, 40.0]),
        "prefer_vendor": random.choice([None, HardwareVendor.AMD]),
    }
    expected: list[int] = []
    left = set(ids)
    while left:
        try:
            best = place(topology, PlacementRequest(devices=left, **asked), health, free_bytes=free)
        except ValueError:
            break
        expected += best.device_ids
        left -= set(best.device_ids)
    if not expected:
        with pytest.raises(ValueError, match="num_devices must be at most 0 here, got 1"):
            rank_devices(topology, PlacementRequest(**asked), health, free_bytes=free)
        return
    ranking = rank_devices(topology, PlacementRequest(**asked), health, free_bytes=free)
    assert list(ranking.device_ids) == expected
    assert sorted(ranking.left_out) == sorted(left)


def test_a_ranking_is_of_single_devices():
    with pytest.raises(ValueError, match="num_devices must be 1 to rank devices, got 2"):
        rank_devices(topologies.dgx_h100(), PlacementRequest(num_devices=2))


def test_devices_of_two_kinds_are_no_run():
    """A GPU, a CPU, a GPU, all failed: not gpu:0-2."""
    devices = [topologies.gpu(i, kind=kind) for i, kind in enumerate(("gpu", "cpu", "gpu", "gpu"))]
    topology = topologies.cluster(topologies.node(devices))
    with pytest.raises(ValueError, match="left out: gpu:0, cpu:1, gpu:2-3 failed"):
        place(topology, PlacementRequest(), dict.fromkeys(range(4), FAILED))


def test_devices_of_a_mesh_in_another_order_are_still_runs():
    request = PlacementRequest(num_devices=4, tensor_parallel_size=2)
    placement = place(topologies.uneven_sockets(), request, {2: HEALTHY})
    assert placement.device_ids == (0, 3, 1, 6)
    assert "of unknown health: gpu:0-1, gpu:3, gpu:6" in placement.reason


def test_measured_rates_decide_to_two_digits():
    topology = topologies.dgx_h100()
    rates = dict.fromkeys(combinations(range(8), 2), 300.0)
    rates[2, 5] = 380.0
    placement = place(topology, PlacementRequest(num_devices=2), measured_gb_s=rates)
    assert (placement.device_ids, placement.slowest["dp"].gb_s) == ((2, 5), 380.0)
    rates[2, 5] = 304.9  # noise
    rates[1, 0] = 299.9
    assert place(topology, PlacementRequest(num_devices=2), measured_gb_s=rates).device_ids == (0, 1)
    rates[1, 0] = 280.0  # the other way round than (0, 1): the slower counts
    assert place(topology, PlacementRequest(num_devices=2), measured_gb_s=rates).device_ids == (0, 2)


def test_measured_rates_must_be_complete_and_positive():
    topology = topologies.uneven_nodes([2, 1], [100.0, 100.0])
    with pytest.raises(ValueError, match=r"must have each pair of \(0, 1, 2\), got none for \(1, 2\)"):
        place(topology, PlacementRequest(num_devices=2), measured_gb_s={(0, 1): 1.0, (0, 2): 1.0})
    with pytest.raises(ValueError, match=r"measured_gb_s must be positive, got 0.0 for \(0, 1\)"):
        place(topology, PlacementRequest(num_devices=2, devices=[0, 1]), measured_gb_s={(0, 1): 0.0})


def test_what_cannot_be_proved_says_so_and_is_the_same_every_time():
    """Sixteen devices, every pair with another rate: too many orders to try."""
    topology = topologies.uneven_nodes([16], [None])
    rates = {(a, b): float(10 + (a * 31 + b * 17) * (a + b) % 89) for a, b in combinations(range(16), 2)}
    request = PlacementRequest(num_devices=16, tensor_parallel_size=4, context_parallel_size=2)
    placement = place(topology, request, measured_gb_s=rates)
    assert not placement.exact
    assert "the best that was found, others may be better" in placement.reason
    assert sorted(placement.device_ids) == list(range(16))
    again = place(topology, request, measured_gb_s=rates)
    assert again == placement
    in_order = min(rates[a, b] for g in range(4) for a, b in combinations(range(4 * g, 4 * g + 4), 2))
    assert placement.slowest["tp"].gb_s > in_order


def test_vendors_do_not_mix():
    devices = [
        topologies.gpu(i, vendor=HardwareVendor.AMD if i % 2 else HardwareVendor.NVIDIA) for i in range(5)
    ]
    topology = topologies.cluster(topologies.node(devices))
    assert place(topology, PlacementRequest(num_devices=2)).device_ids == (0, 2)
    amd = PlacementRequest(num_devices=2, prefer_vendor=HardwareVendor.AMD)
    assert place(topology, amd).device_ids == (1, 3)
    many = PlacementRequest(num_devices=3, prefer_vendor=HardwareVendor.AMD)
    assert place(topology, many).device_ids == (0, 2, 4)
    with pytest.raises(ValueError, match="do not work together: 3 nvidia gpus, 2 amd gpus"):
        place(topology, PlacementRequest(num_devices=4))


def test_the_healthier_vendor_is_chosen():
    """Two NVIDIA GPUs of which one is degraded, two AMD ones."""
    devices = [topologies.gpu(i, vendor=list(HardwareVendor)[i // 2]) for i in range(4)]
    topology = topologies.cluster(topologies.node(devices))
    assert place(topology, PlacementRequest(num_devices=2)).device_ids == (0, 1)
    assert place(topology, PlacementRequest(num_devices=2), {1: DEGRADED}).device_ids == (2, 3)


def test_only_the_devices_that_were_named():
    request = PlacementRequest(num_devices=2, devices=[6, 3, 1])
    placement = place(topologies.uneven_sockets(), request)
    assert placement.device_ids == (1, 6)
    assert "gpu:0" not in placement.reason
    with pytest.raises(ValueError, match=r"devices must be among \[0, 1\], got \[9\]"):
        place(topologies.cpu_only(), PlacementRequest(devices=[9]))


def test_a_machine_without_accelerators_places_its_packages():
    placement = place(topologies.cpu_only(2), PlacementRequest(num_devices=2, memory_gb=10.0))
    assert placement.device_ids == (0, 1)
    assert placement.slowest["dp"].name == "socket"
    assert placement.slowest["dp"].derived == "from their two NUMA nodes"


@pytest.mark.skipif(shutil.which("lstopo-no-graphics") is None, reason="needs hwloc (apt-get install hwloc)")
def test_packages_of_a_machine_that_hwloc_made_up():
    """Two NUMA nodes of two packages, numbered to and fro: 0 and 2 in one, 1 and 3 in the other."""
    seen = read_hwloc_xml(lstopo_xml("-i", "node:2 pack:2(indexes=0,2,1,3) core:2 pu:2"))
    devices = [
        topologies.gpu(package.package_id, kind="cpu", numa_node=numa.numa_id, cpus=package.cpus)
        for package in seen.packages
        for numa in seen.numa_nodes
        if set(package.cpus) <= set(numa.cpus)
    ]
    assert {device.device_id: device.numa_node for device in devices} == {0: 0, 1: 1, 2: 0, 3: 1}
    node = topologies.node(devices, cpus=[numa.cpus for numa in seen.numa_nodes])
    request = PlacementRequest(num_devices=4, tensor_parallel_size=2)
    placement = place(topologies.cluster(node), request)
    assert placement.device_ids == (0, 2, 1, 3)
    assert placement.slowest["tp"] == PairLink(kind=LinkKind.HOST_BRIDGE, derived="from their one NUMA node")
    assert placement.slowest["dp"] == PairLink(kind=LinkKind.SOCKET, derived="from their two NUMA nodes")


def test_needs_that_no_choice_meets():
    topology = topologies.cpu_only(2)
    with pytest.raises(ValueError, match=r"0 fit; left out: cpu:0-1 has 68.7 GB, less than 100 GB"):
        place(topology, PlacementRequest(num_devices=2, memory_gb=100.0))
    with pytest.raises(ValueError, match="cpu:0-1 has an unknown peak rate"):
        place(topology, PlacementRequest(num_devices=1, tflops=1.0))
    with pytest.raises(ValueError, match=r"memory_gb=\[0.0, 100.0\]: too few of 2 devices"):
        place(topology, PlacementRequest(num_devices=2, memory_gb=[0.0, 100.0]))
    with pytest.raises(ValueError, match=r"left out: gpu:0-7 has 67.0 TFLOP/s, less than 100"):
        place(topologies.dgx_h100(), PlacementRequest(tflops=100.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_devices": 0}, ValueError, "num_devices must be positive, got 0"),
        ({"tensor_parallel_size": -1}, ValueError, "tensor_parallel_size must be positive, got -1"),
        ({"num_devices": True}, TypeError, "num_devices must be an int, got bool"),
        ({"pipeline_parallel_size": 2.0}, TypeError, "pipeline_parallel_size must be an int, got float"),
        ({"num_devices": 6, "tensor_parallel_size": 4}, ValueError, "num_devices=6 must be a multiple of 4"),
        (
            {"num_devices": 8, "data_parallel_size": 2, "tensor_parallel_size": 2},
            ValueError,
            "tensor_parallel_size=2 multiply to 4, not to num_devices=8",
        ),
        ({"memory_gb": -1.0}, ValueError, "memory_gb must be finite and not negative, got -1.0"),
        ({"memory_gb": float("nan")}, ValueError, "memory_gb must be finite and not negative, got nan"),
        ({"tflops": float("inf")}, ValueError, "tflops must be finite and not negative, got inf"),
        ({"num_devices": 2, "memory_gb": [1.0]}, ValueError, "memory_gb must have one number, or 2, got 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_requests_are_checked(arguments: dict[str, object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        PlacementRequest(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (1, 1, 1, 1)),
        ({"num_devices": 8, "tensor_parallel_size": 4}, (2, 1, 1, 4)),
        ({"data_parallel_size": 3, "context_parallel_size": 2}, (3, 1, 2, 1)),
        ({"num_devices": 6, "data_parallel_size": 3, "pipeline_parallel_size": 2}, (3, 2, 1, 1)),
    ],
    ids=str,
)
def test_the_size_that_is_not_given_follows(arguments: dict[str, int], shape: Shape):
    assert PlacementRequest(**arguments).shape == shape  # type: ignore[arg-type]
