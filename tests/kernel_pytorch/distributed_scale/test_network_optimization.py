"""The inherited calls of the optimizer, and what they answer without and with a process group."""

from __future__ import annotations

import json
import logging
import os
from unittest import mock

import numpy as np
import pytest
import torch
from tests.support.worlds import World

from kernel_pytorch.distributed_scale import (
    NetworkTopologyOptimizer,
    create_adaptive_scheduler,
    create_bandwidth_scheduler,
    create_topology_optimizer,
)
from kernel_pytorch.links.cost import expected_time
from kernel_pytorch.links.hosts import RankHome
from kernel_pytorch.links.methods import PATTERNS, CommunicationPattern, CompressionMethod
from kernel_pytorch.links.schedule import queue as queue_module
from kernel_pytorch.links.topology import NetworkTopology
from kernel_pytorch.links.topology import logger as topology_logger


@pytest.fixture(scope="module")
def world():
    with World(4) as world:
        yield world


def test_inherited_calls():
    optimizer = NetworkTopologyOptimizer(16, 3)
    assert (optimizer.discovered_topology.node_count, optimizer.discovered_topology.gpus_per_node) == (2, 8)
    assert optimizer.bandwidth_matrix.shape == optimizer.latency_matrix.shape == (16, 16)
    answer = optimizer.optimize_communication_pattern("allreduce", 64 * 1024 * 1024, list(range(16)))
    assert answer.keys() == {
        "optimal_pattern",
        "chunk_size",
        "compression_method",
        "expected_time_ms",
        "basis",
        "alternatives",
    }
    assert isinstance(answer["optimal_pattern"], CommunicationPattern)
    assert (answer["compression_method"], answer["basis"]) == (CompressionMethod.NONE, "default")
    assert 0 < answer["chunk_size"] <= 64 * 1024 * 1024
    others = answer["alternatives"]
    times = [answer["expected_time_ms"], *(other["expected_time_ms"] for other in others)]
    assert times == sorted(times)
    assert {answer["optimal_pattern"], *(other["optimal_pattern"] for other in others)} == set(PATTERNS)
    optimizer.update_congestion_levels({(0, 8): 0.9})
    info = optimizer.get_topology_info()
    assert info["discovered_topology"]["topology_type"] == "fat_tree"
    assert info["bandwidth_matrix_stats"]["max_bandwidth"] == 600.0
    assert info["congestion_info"]["max_congestion"] == 0.9
    assert json.loads(json.dumps(info))["latency_matrix_stats"]["min_latency"] == 4.0


def test_tensor_size_is_that_of_each_rank():
    optimizer = NetworkTopologyOptimizer(4, 0, NetworkTopology(2, 2))
    for name, operation, vector in (
        ("allgather", "all_gather", 4000),
        ("ReduceScatter", "reduce_scatter", 1000),
    ):
        found = optimizer.optimize_communication_pattern(name, 1000, [0, 1, 2, 3])
        wanted = expected_time("adaptive", operation, vector, optimizer.links)
        assert found["expected_time_ms"] == pytest.approx(1e3 * wanted.seconds)
        assert found["basis"] == "given"
    assert optimizer.optimize_communication_pattern("all_to_all", 1000)["optimal_pattern"] is None
    with pytest.raises(
        ValueError, match=r"operation must be one of all_reduce, all_gather, .*, got broadcast"
    ):
        optimizer.optimize_communication_pattern("broadcast", 1000, [0, 1])


def test_congestion_lowers_what_is_left_and_raises_it_again():
    optimizer = create_topology_optimizer(4, node_count=2, gpus_per_node=2)

    def time_ms() -> float:
        return optimizer.optimize_communication_pattern("all_reduce", 1 << 24)["expected_time_ms"]

    free = time_ms()
    optimizer.update_congestion_levels({(0, 2): 0.9, (3, 1): 0.5})
    assert optimizer.bandwidth_matrix[1, 3] == pytest.approx(20.0)
    assert optimizer.bandwidth_matrix[2, 0] == 100.0
    assert time_ms() > 5 * free
    optimizer.update_congestion_levels({(0, 2): 0.5})
    assert optimizer.bandwidth_matrix[1, 3] == 100.0
    assert free < time_ms() < 3 * free
    optimizer.update_congestion_levels({(0, 2): 0.0, (3, 1): 0.0})
    assert time_ms() == free
    with pytest.raises(ValueError, match=r"utilisation of link \(0, 1\) must be from 0 to 1, got 1.5"):
        optimizer.update_congestion_levels({(0, 1): 1.5})
    with pytest.raises(ValueError, match=r"a pair of ranks from 0 to 3, got \(0, 4\)"):
        optimizer.update_congestion_levels({(0, 4): 0.5})


def test_lossy_formats_only_if_asked_for():
    optimizer = create_topology_optimizer(4, 2, 2)
    plain = optimizer.optimize_communication_pattern("all_reduce", 1 << 24)
    asked = optimizer.optimize_communication_pattern(
        "all_reduce", 1 << 24, compression=CompressionMethod.ADAPTIVE
    )
    assert (plain["compression_method"], asked["compression_method"]) == ("none", "bf16")
    assert asked["expected_time_ms"] < plain["expected_time_ms"]
    with pytest.raises(ValueError, match="compression must be none or adaptive"):
        optimizer.optimize_communication_pattern("all_reduce", 1, compression=CompressionMethod.TOPK)


def test_order_of_ranks():
    assert create_topology_optimizer(4, 2, 2).rank_order().ranks == (0, 1, 2, 3)
    across = np.zeros((4, 4))
    across[0, 2] = across[1, 3] = 1e9
    assert create_topology_optimizer(4, 2, 2).rank_order(across).crossing_bytes == 0


def test_one_rank_needs_no_group():
    optimizer = NetworkTopologyOptimizer(1, 0)
    optimizer.measure()
    assert optimizer.optimize_communication_pattern("all_reduce", 1000, [0])["expected_time_ms"] == 0
    assert optimizer.get_topology_info()["bandwidth_matrix_stats"]["avg_bandwidth"] is None


def test_bad_input():
    with pytest.raises(ValueError, match="world_size 8 is more than the 4 places of the topology"):
        NetworkTopologyOptimizer(8, 0, NetworkTopology(2, 2))
    with pytest.raises(ValueError, match="got rank 2 of 2"):
        NetworkTopologyOptimizer(2, 2)
    with pytest.raises(RuntimeError, match=r"call torch.distributed.init_process_group first"):
        NetworkTopologyOptimizer(2, 0).measure()
    with pytest.raises(ValueError, match="node_count must be positive, got 0"):
        create_topology_optimizer(8, 0)
    with pytest.raises(ValueError, match="tensor_size must not be negative, got -4"):
        NetworkTopologyOptimizer(2, 0).optimize_communication_pattern("all_reduce", -4, [0, 1])


def of_which_hosts(group):
    """Hosts of a queue, by default and with a topology that says others than there are."""
    alone = RankHome(boot_id=str(group.rank()), network_namespace="1")
    with (
        mock.patch.object(queue_module, "home_of_this_rank", return_value=alone),
        mock.patch.object(topology_logger, "warning") as warned,
    ):
        schedulers = create_adaptive_scheduler(), create_bandwidth_scheduler(4, 2, 2)
    hosts = [scheduler._schedule._queue.group.links.hosts for scheduler in schedulers]
    for scheduler in schedulers:
        scheduler.shutdown()
    return hosts, [call.args[1] for call in warned.call_args_list]


def test_hosts_of_a_scheduler_are_given_or_found(world):
    (hosts, told), *others = world.results(of_which_hosts)
    assert hosts == [((0,), (1,), (2,), (3,)), ((0, 1), (2, 3))]
    assert told == ["the topology has ranks 0 1 | 2 3 on nodes of their own, found were 0 | 1 | 2 | 3"]
    assert others == [(hosts, [])] * 3


def test_a_scheduler_without_tensors_only_says_what_to_expect():
    scheduler = create_bandwidth_scheduler()
    answer = scheduler.schedule_communication("op", "allreduce", [0, 1, 2, 3], 1 << 20, 2.0)
    assert answer["handle"] is None
    assert (answer["schedule_time_ms"], answer["optimization"]["basis"]) == (0.0, "given")
    assert scheduler.get_active_communications() == []
    stats = scheduler.get_scheduling_stats()
    assert stats["operations"] == {
        "total_scheduled": 1,
        "pending": 1,
        "active": 0,
        "completed": 0,
        "failed": 0,
    }
    assert scheduler.optimize_pending_operations() == {}
    scheduler.schedule_communication("other", "allreduce", [0, 7], 1 << 20)
    scheduler.update_bandwidth_utilization((0, 7), 0.75)
    assert scheduler.get_scheduling_stats()["bandwidth_utilization"]["peak"] == 0.75
    with pytest.raises(RuntimeError, match=r"call torch.distributed.init_process_group before"):
        scheduler.schedule_communication("op", "allreduce", [0, 1], 4, tensor=torch.ones(1))
    assert scheduler.clear_completed_operations() == 0
    assert scheduler.get_scheduling_stats()["operations"]["total_scheduled"] == 2
    assert scheduler.clear_completed_operations(0) == 0
    assert scheduler.get_scheduling_stats()["operations"]["total_scheduled"] == 0
    scheduler.shutdown()


def test_pending_operations_are_optimized_for_links_as_they_are_used():
    scheduler = create_bandwidth_scheduler(16, 2, 8)
    far = scheduler.schedule_communication("far", "allreduce", [0, 8], 1 << 20)["optimization"]
    scheduler.schedule_communication("near", "allreduce", [0, 1], 1 << 20)
    scheduler.update_bandwidth_utilization((0, 8), 0.75)
    changed = scheduler.optimize_pending_operations()
    assert list(changed) == ["far"]
    assert changed["far"]["expected_time_ms"] > 3 * far["expected_time_ms"]
    assert scheduler.optimize_pending_operations() == {}


def test_one_rank_runs_at_once():
    scheduler = create_adaptive_scheduler()
    answer = scheduler.schedule_communication("a", "all_reduce", [0], 8, tensor=torch.ones(2))
    assert answer["handle"].result().tolist() == [1.0, 1.0]
    assert scheduler.get_scheduling_stats()["operations"]["completed"] == 1
    scheduler.shutdown()


def measured(group, cache):
    os.environ["XDG_CACHE_HOME"] = cache
    found = NetworkTopologyOptimizer(4, group.rank(), NetworkTopology(2, 2))
    logging.getLogger("kernel_pytorch").setLevel(logging.ERROR)
    links = found.measure(seconds=0.5)
    try:
        create_topology_optimizer(3).measure()
    except ValueError as error:
        message = str(error)
    plain = create_topology_optimizer(4)
    plain.measure(group, 0.5)
    answer = plain.optimize_communication_pattern("allreduce", 1 << 20, [0, 1, 2, 3])
    return links.hosts, found.difference, found.discovered_topology, message, plain.rank, answer


def scheduled(group):
    """Urgent and other operations by the inherited calls; rank 0 submits them the other way round."""
    rank, all_ranks = group.rank(), [0, 1, 2, 3]
    scheduler = create_bandwidth_scheduler(4, 2, 2)
    names = ["large", "small"][:: 1 if rank else -1]
    tensors = {"large": torch.full((500_000,), float(rank)), "small": torch.full((2,), float(rank))}
    answers = {}
    for name in names:
        nbytes, priority = 4 * len(tensors[name]), 1.0 if name == "large" else 9.0
        answers[name] = scheduler.schedule_communication(
            name, "allreduce", all_ranks, nbytes, priority, tensor=tensors[name]
        )
    waits = {name: answers[name]["schedule_time_ms"] > 0 for name in names}
    for name in names:
        answers[name]["handle"].wait(60)
    right = all(each.eq(6).all() for each in tensors.values())
    scheduler.update_bandwidth_utilization((0, 2), 0.5)
    counts = scheduler.get_scheduling_stats()["operations"]
    cleared = scheduler.clear_completed_operations(), scheduler.clear_completed_operations(0)
    for arguments in (("x", "allreduce", all_ranks, 7), ("y", "broadcast", all_ranks, 4)):
        with pytest.raises(
            ValueError, match=r"tensor_size is 7, and tensor has 4 bytes|operation must be one of"
        ):
            scheduler.schedule_communication(*arguments, tensor=torch.ones(1))
    with pytest.raises(TypeError, match="tensor must be a tensor, got list"):
        scheduler.schedule_communication("z", "allreduce", all_ranks, 4, tensor=[1.0])
    with pytest.raises(ValueError, match="world_size is 8, the process group has 4 ranks"):
        create_bandwidth_scheduler()
    scheduler.shutdown()
    return waits, right, counts["completed"], cleared


def test_a_scheduler_carries_out_what_ranks_submit_in_any_order(world):
    found = world.results(scheduled)
    assert [each[1:4] for each in found] == [(True, 2, (0, 2))] * 4
    assert found[1][0] == {"large": False, "small": False}  # what is urgent waits for nothing
    assert found[0][0]["small"] is False


def test_measured_links_replace_the_model(world, tmp_path):
    answers = world.results(measured, str(tmp_path))
    hosts, told, topology, message, _, answer = answers[0]
    assert hosts == ((0, 1), (2, 3))  # the topology is believed, though all ranks share this machine
    assert told == "the topology has ranks 0 1 | 2 3 on nodes of their own, found were 0 1 2 3"
    assert (topology.node_count, topology.gpus_per_node, topology.topology_type) == (2, 2, "measured")
    assert message == "world_size is 3, the process group has 4 ranks"
    assert [each[4] for each in answers] == [0, 1, 2, 3]
    assert answer["basis"] in ("measured", "saved")
    assert all(each[5] == answer for each in answers)
