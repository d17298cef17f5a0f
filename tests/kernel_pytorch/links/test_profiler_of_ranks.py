"""The profiler on real ranks."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from worlds import World

from kernel_pytorch.distributed_scale import CommunicationProfiler
from kernel_pytorch.groups import GroupError

STEPS, LATE_S = 12, 0.2


@pytest.fixture(scope="module")
def world():
    with World(2) as world:
        yield world


def late_rank(group, folder):
    """Rank 1 calls 0.2 s after rank 0 has."""
    import torch
    import torch.distributed as dist

    rank, store = dist.get_rank(), dist.distributed_c10d._get_default_store()
    profiler = CommunicationProfiler()
    recorded = profiler.wrap(group)
    tensor = torch.ones(1024)
    for step in range(STEPS):
        profiler.step()
        if rank == 1:
            store.wait([f"called {step}"])
            time.sleep(LATE_S)
        work = dist.all_reduce(tensor, group=recorded, async_op=True)
        store.set(f"called {step}", "")
        work.wait()
        dist.broadcast(tensor, 0, group=recorded)
    run = profiler.collect()
    profiler.export_detailed_profile(f"{folder}/{rank}.json")
    return [finding.text for finding in profiler.identify_bottlenecks()], run.notes, len(run.collectives)


def test_a_late_rank(world, tmp_path):
    first, second = world.results(late_rank, str(tmp_path))
    assert first == second  # all ranks know the same
    (text,), notes, calls = first
    assert (notes, calls) == ((), 2 * STEPS)
    site = rf"{Path(__file__).name}:(\d+)"
    told = re.fullmatch(
        rf"rank 1 comes (\S+) ms late to all_reduce 4 KB \({site}\): (\S+) ms of each step", text
    )
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if "work = dist.all_reduce" in each)
    assert int(told[2]) == line
    assert float(told[1]) >= 1e3 * LATE_S * 0.9
    profile = json.loads((tmp_path / "0.json").read_text())["performance_report"]["profile"]
    counts = {(each["operation"], each["nbytes"]): each["calls"] for each in profile["operations"]}
    assert counts == {("broadcast", 4096): STEPS, ("all_reduce", 4096): STEPS}
    assert profile["steps"]["steps"] == STEPS - 1
    assert profile["steps"]["ms"]["value"] >= 1e3 * LATE_S
    assert profile["ranks"][1]["clock"]["error_s"] < LATE_S
    assert (tmp_path / "1.html").exists()


def nothing_recorded(group):
    profiler = CommunicationProfiler()
    if group.rank() == 0:
        profiler.wrap(group)
    profiler.collect()


def test_a_rank_that_recorded_nothing_is_an_error_on_all(world):
    with_records, without = world.run(nothing_recorded)
    assert isinstance(without, RuntimeError)
    assert str(without) == "nothing is recorded: wrap a process group first"
    assert isinstance(with_records, GroupError)
    assert str(with_records).startswith(
        "rank 1 of 2 cannot tell its records: RuntimeError: nothing is recorded"
    )
