"""Patterns of all-reduce on real groups, against torch's own."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.distributed as dist
from tests.support.worlds import World

from kernel_pytorch.links.collectives.run import run
from kernel_pytorch.links.collectives.steps import plan
from kernel_pytorch.links.methods import CommunicationPattern, Operation

PATTERNS = [pattern for pattern in CommunicationPattern if pattern is not CommunicationPattern.ADAPTIVE]
HOSTS = {1: [[0]], 2: [[0], [1]], 3: [[0, 2], [1]], 4: [[0, 2], [1, 3]]}
OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def compare(group, dtypes, counts):
    """What differs from torch's all_reduce; whole numbers, so that no order of sums matters."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    order = list(reversed(range(size)))
    wrong = []
    for dtype, count, pattern, (op, theirs), chunks in product(dtypes, counts, PATTERNS, OPS.items(), (1, 3)):
        torch.manual_seed(rank)
        mine = torch.randint(0, 7, (count,)).to(dtype)
        expected = mine.clone()
        run(plan(Operation.ALL_REDUCE, pattern, [count], HOSTS[size], order, chunks), mine, group, op)
        dist.all_reduce(expected, theirs, group=group)
        if not torch.equal(mine, expected):
            wrong.append((pattern, op, dtype, count, chunks))
    return wrong


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_pattern_is_torchs_all_reduce(size: int):
    with World(size) as world:
        found = world.results(compare, (torch.float32, torch.bfloat16, torch.int64), (0, 1, 7, 1000))
        assert found == [[]] * size
