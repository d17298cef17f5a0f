"""The collectives by their inherited names, on real groups."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from tests.support.worlds import World

from kernel_pytorch.distributed_scale.communication_primitives import (
    AdvancedCollectiveOps,
    CollectiveOpConfig,
    CommunicationMetrics,
    CommunicationPattern,
    CompressionMethod,
    NetworkTopology,
    create_collective_ops,
    create_default_topology,
)
from kernel_pytorch.groups import GroupError

TWO_NODES = NetworkTopology(node_count=2, gpus_per_node=2)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(4) as world:
        yield world


def inherited(group):
    """The calls of older versions."""
    rank = dist.get_rank(group)
    ops = create_collective_ops(4, rank, TWO_NODES, CollectiveOpConfig(chunk_size_mb=1))
    tensor = torch.full((3,), float(rank))
    assert ops.hierarchical_allreduce(tensor) is tensor
    handle = ops.hierarchical_allreduce(torch.ones(2), async_op=True)
    parts = [torch.empty(2) for _ in range(4)]
    assert ops.adaptive_allgather(torch.full((2,), float(rank)), parts) is not None
    uneven = ops.adaptive_allgather(torch.full((rank, 1), rank))
    mean = asyncio.run(ops.allreduce_optimized(torch.full((2,), float(rank)), op="mean"))
    ring = asyncio.run(ops.allreduce_optimized(torch.ones(1), pattern=CommunicationPattern.RING))
    joined = asyncio.run(ops.allgather_optimized(torch.full((1, 2), rank)))
    payload, metadata = ops.compress_tensor(torch.arange(9.0), CompressionMethod.BF16)
    stats = ops.get_communication_stats()
    ops.close()
    return {
        "sum": tensor.tolist(),
        "handle": handle.result().tolist(),
        "list": [part[0].item() for part in parts],
        "uneven": [len(part) for part in uneven],
        "mean": mean.tolist(),
        "ring": ring.tolist(),
        "joined": joined[:, 0].tolist(),
        "scattered": payload.numel(),
        "back": ops.decompress_tensor(payload, metadata).tolist(),
        "groups": ops.communication_groups,
        "stats": sorted(stats),
        "expected": stats["expected_s"] is not None and stats["measured_s"] <= stats["seconds"],
        "basis": stats["basis"],
        "difference": stats["topology_difference"],
        "metrics": (ops.metrics.operation, ops.metrics.tensor_bytes),
    }


def test_inherited_calls(world: World):
    found = world.results(inherited)
    for result in found:
        assert result["sum"] == [6.0] * 3
        assert result["handle"] == [4.0] * 2
        assert result["list"] == [0, 1, 2, 3]
        assert result["uneven"] == [0, 1, 2, 3]
        assert result["mean"] == [1.5] * 2
        assert result["ring"] == [4.0]
        assert result["joined"] == [0, 1, 2, 3]
        assert result["scattered"] == 18
        assert result["back"] == list(range(9))
        assert result["groups"] == {
            "node_0": [0, 1],
            "node_1": [2, 3],
            "inter_node_gpu_0": [0, 2],
            "inter_node_gpu_1": [1, 3],
            "ring": [0, 1, 2, 3],
        }
        assert set(result["stats"]) >= {"bytes_on_wire", "seconds", "choices", "expected_s", "measured_s"}
        assert result["expected"]
        assert result["basis"] == "given"
        assert (
            result["difference"]
            == "the topology has ranks 0 1 | 2 3 on nodes of their own, found were 0 1 2 3"
        )
        assert result["metrics"] == ("all_gather", 64)


def in_a_loop(group):
    """What an event loop sees: it goes on, the calls run in the order in which they were made."""
    rank = dist.get_rank(group)
    ops = AdvancedCollectiveOps(4, rank)

    async def main() -> tuple[int, list[float], float]:
        done = asyncio.Event()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while not done.is_set():
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        first = ops.allreduce_optimized(torch.ones(200_000))
        second = ops.allreduce_optimized(torch.tensor([float(rank)]))
        results = await asyncio.gather(first, second)
        # Who gives up waiting leaves the call on its way.
        tensor = torch.ones(1)
        waiting = asyncio.ensure_future(ops.allreduce_optimized(tensor))
        await asyncio.sleep(0)
        waiting.cancel()
        after = await ops.allreduce_optimized(torch.ones(1))
        done.set()
        await counting
        assert waiting.cancelled()
        return turns, [float(each[0]) for each in results], float(tensor), float(after)

    return asyncio.run(main())


def test_an_event_loop_goes_on(world: World):
    for turns, results, cancelled, after in world.results(in_a_loop):
        assert turns > 1
        assert results == [4.0, 6.0]
        assert (cancelled, after) == (4.0, 4.0)


def wrong(group):
    rank, messages = dist.get_rank(group), []
    for size, own, topology in (
        (3, rank, None),
        (4, 0, None),
        (4, rank, NetworkTopology(node_count=1, gpus_per_node=2)),
    ):
        # Of a wrong rank all but the first are told that the others cannot.
        with pytest.raises((ValueError, GroupError)) as raised:
            AdvancedCollectiveOps(size, own, topology)
        messages.append(str(raised.value))
    return messages


def test_what_does_not_fit_the_group_is_refused(world: World):
    found = world.results(wrong)
    for size, _, places in found:
        assert size == "world_size is 3, the process group has 4 ranks"
        assert "world_size 4 is more than the 2 places of the topology" in places
    assert found[1][1] == "rank is 0, this process has rank 1 in the process group"
    assert "rank 1 of 4 cannot make its collectives: ValueError: rank is 0" in found[0][1]


def test_without_a_group():
    with pytest.raises(RuntimeError, match=r"4 ranks needs a process group: .*init_process_group"):
        AdvancedCollectiveOps(4, 0)
    ops = AdvancedCollectiveOps(1, 0, create_default_topology())
    tensor = torch.ones(3)
    assert ops.hierarchical_allreduce(tensor, "mean") is tensor
    assert asyncio.run(ops.allgather_optimized(tensor)).tolist() == [1.0] * 3
    assert ops.metrics == CommunicationMetrics()
    assert ops.get_communication_stats()["bytes_on_wire"] == 0
    with pytest.raises(ValueError, match="rank is 1, this process has rank 0"):
        AdvancedCollectiveOps(1, 1)


def test_config_is_checked():
    assert CollectiveOpConfig(pattern="ring").pattern is CommunicationPattern.RING
    with pytest.raises(ValueError, match="chunk_size_mb must be positive, got 0"):
        CollectiveOpConfig(chunk_size_mb=0)
    with pytest.raises(ValueError, match=r"CommunicationPattern must be one of ring, tree, .*, got 'star'"):
        CollectiveOpConfig(pattern="star")
    default = create_default_topology()
    assert (default.node_count, default.gpus_per_node) == (4, 8)
