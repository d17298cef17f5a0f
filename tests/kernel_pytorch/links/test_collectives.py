"""Patterns of all-reduce on real groups, against torch's own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from tests.support.worlds import World

from kernel_pytorch.links.collectives import run, steps

HOSTS = {1: [[0]], 2: [[0], [1]], 3: [[0, 2], [1]], 4: [[0, 2], [1, 3]]}
OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def patterns(size: int):
    order = list(reversed(range(size)))
    return {
        "ring": partial(steps.ring, order),
        "tree": partial(steps.tree, order),
        "butterfly": partial(steps.butterfly, order),
        "hierarchical": partial(steps.hierarchical, HOSTS[size]),
    }


def compare(group, dtypes, counts):
    """What differs from torch's all_reduce; whole numbers, so that no order of sums matters."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    wrong = []
    for dtype in dtypes:
        for count in counts:
            torch.manual_seed(rank)
            data = torch.randint(0, 7, (count,)).to(dtype)
            for name, build in patterns(size).items():
                for op, theirs in OPS.items():
                    for chunks in (1, 3):
                        mine, expected = data.clone(), data.clone()
                        run.run(build, mine, group, op, chunks)
                        dist.all_reduce(expected, theirs, group=group)
                        if not torch.equal(mine, expected):
                            wrong.append((name, op, dtype, count, chunks))
    return wrong


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_pattern_is_torchs_all_reduce(size: int):
    with World(size) as world:
        found = world.results(compare, (torch.float32, torch.bfloat16, torch.int64), (0, 1, 7, 1000))
        assert found == [[]] * size
