"""Operations that ranks submit in different orders, on real groups."""

from __future__ import annotations

import math
import os
import random
import socket
import subprocess
import sys
import time
from datetime import timedelta
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.support.worlds import World

from kernel_pytorch.groups import GroupError
from kernel_pytorch.links.methods import Operation
from kernel_pytorch.links.schedule import queue as queue_module
from kernel_pytorch.links.schedule.pieces import Piecewise
from kernel_pytorch.links.schedule.queue import CollectiveQueue

SIZE = 4
TIMEOUT_S = 5


@pytest.fixture(scope="module")
def world():
    with World(SIZE) as world:
        yield world


def impatient() -> dist.ProcessGroup:
    """All ranks, with a short timeout, which the queue takes over."""
    return dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))


def many(group: dist.ProcessGroup, count: int) -> list[int]:
    """Which of random all-reduces among random ranks, submitted in another order by each rank, are wrong."""
    rank, queue = dist.get_rank(group), CollectiveQueue(chunk_bytes=1 << 14)
    rng = random.Random(7)
    cases = []
    for number in range(count):
        ranks = sorted(rng.sample(range(SIZE), rng.choice([1, 2, 3, 4, 4, 4])))
        length = rng.choice([0, 1, 7, 100, 1000, 20_000]) if number % 25 == 0 else rng.randrange(200)
        cases.append((number, ranks, length, rng.choice(["sum", "max"]), rng.random()))
    random.Random(rank).shuffle(cases)
    handles, named_alike = [], []
    for number, ranks, length, op, priority in cases:
        if number % 100 == 0:
            named_alike.append(queue.submit("all_reduce", torch.ones(3), name="again"))
        if rank in ranks:
            tensor = torch.arange(length) * (rank + 1) + number
            handle = queue.submit(
                "all_reduce", tensor, name=str(number), op=op, participants=ranks, priority=priority
            )
            handles.append((number, ranks, length, op, handle))
    wrong = []
    for number, ranks, length, op, handle in handles:
        each = torch.stack([torch.arange(length) * (other + 1) + number for other in ranks])
        wanted = each.sum(dim=0) if op == "sum" else each.max(dim=0).values
        if not torch.equal(handle.result(120), wanted):
            wrong.append(number)
    wrong += [-1 for handle in named_alike if not handle.result(120).eq(SIZE).all()]
    queue.shutdown()
    return wrong


def test_a_thousand_random_submissions(world: World):
    assert world.results(many, 1000) == [[]] * SIZE


def each_operation(group: dist.ProcessGroup) -> list[str]:
    rank, queue, wrong = dist.get_rank(group), CollectiveQueue(chunk_bytes=100), []

    def check(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
        if found.dtype != wanted.dtype or not torch.equal(found, wanted):
            wrong.append(name)

    for ranks in ([0, 1, 2, 3], [1, 3], [2]):
        if rank not in ranks:
            continue
        size, place = len(ranks), ranks.index(rank)
        for dtype in (torch.float32, torch.bfloat16, torch.int16, torch.bool):
            rows = {
                each: (torch.arange(size * 2 * 9).view(size * 2, 3, 3) + each).to(dtype) for each in ranks
            }
            mine, name = rows[rank].clone(), f"{dtype} {ranks}"
            handles = {
                operation: queue.submit(
                    operation, mine.clone(), name=f"{operation} {name}", participants=ranks, op="max"
                )
                for operation in Operation
            }
            highest = torch.stack([rows[each].to(torch.int64) for each in ranks]).amax(dim=0).to(dtype)
            check(f"reduce {name}", handles[Operation.ALL_REDUCE].result(60), highest)
            check(f"gather {name}", handles[Operation.ALL_GATHER].result(60), torch.cat(list(rows.values())))
            own = slice(2 * place, 2 * place + 2)
            check(f"scatter {name}", handles[Operation.REDUCE_SCATTER].result(60), highest[own])
            swapped = torch.cat([rows[each][own] for each in ranks])
            check(f"all to all {name}", handles[Operation.ALL_TO_ALL].result(60), swapped)
    # What gloo would corrupt, and a mean.
    whole = torch.full((6, 4), float(rank))
    queue.submit("all_reduce", whole.t()[1:3], name="strided", op="mean").wait(60)
    wanted = torch.full((6, 4), float(rank))
    wanted[:, 1:3] = 1.5
    check("strided", whole, wanted)
    queue.shutdown()
    return wrong


def test_each_operation_among_all_and_among_some(world: World):
    assert world.results(each_operation) == [[]] * SIZE


def order_of_chunks(group: dist.ProcessGroup) -> list[tuple[int, int]]:
    """Lengths and chunks, in the order in which they ran; something urgent comes during chunk 3."""
    queue, ran, handles = CollectiveQueue(chunk_bytes=4000), [], []
    run = Piecewise.run

    def noting(self, pattern, chunk, chunks):
        ran.append((len(self._values), chunk))
        if ran[-1] == (10_000, 3):
            handles.append(queue.submit("all_reduce", torch.ones(10), name="urgent", priority=5.0))
            handles.append(queue.submit("all_reduce", torch.ones(20), name="also", priority=1.0))
        run(self, pattern, chunk, chunks)

    with mock.patch.object(Piecewise, "run", noting):
        big = queue.submit("all_reduce", torch.ones(10_000), name="big")
        assert big.result(60).eq(SIZE).all()
        assert all(handle.result(60).eq(SIZE).all() for handle in handles)
    assert big.is_completed()
    queue.shutdown()
    return ran


def test_what_is_urgent_waits_for_one_chunk(world: World):
    for ran in world.results(order_of_chunks):
        before, after = [(10_000, n) for n in range(4)], [(10_000, n) for n in range(4, 10)]
        assert ran == [*before, (10, 0), *after, (20, 0)]


def missing(group: dist.ProcessGroup) -> tuple[list[str], list[float], str]:
    rank, queue = dist.get_rank(group), CollectiveQueue(impatient())
    errors = []
    if rank != 2:
        handle = queue.submit("all_gather", torch.ones(3), name="weights")
        with pytest.raises(TimeoutError, match=r"not done after 0.01 s"):
            handle.wait(0.01)
        with pytest.raises(GroupError) as error:
            handle.wait(6 * TIMEOUT_S)
        errors.append(str(error.value))
    if rank < 2:
        handle = queue.submit("all_reduce", torch.ones(rank + 1), name="shapes", participants=[0, 1])
        with pytest.raises(GroupError) as error:
            handle.wait(6 * TIMEOUT_S)
        errors.append(str(error.value))
    dist.barrier()
    fine = queue.submit("all_reduce", torch.ones(2), name="fine").result(6 * TIMEOUT_S)
    queue.shutdown()
    with pytest.raises(GroupError) as error:
        queue.submit("all_reduce", torch.ones(2), name="late")
    return errors, fine.tolist(), str(error.value)


def test_an_error_is_that_of_its_operation(world: World):
    found = world.results(missing)
    told = "all_gather 'weights' among ranks 0, 1, 2, 3: rank 2 did not submit it within 4 s"
    assert [errors[:1] for errors, _, _ in found] == [[told], [told], [], [told]]
    assert found[0][0] == found[1][0]
    differing = found[0][0][1]
    assert "shape is" in differing
    assert "(1,) on rank 0" in differing
    assert "(2,) on rank 1" in differing
    for _, fine, late in found:
        assert fine == [SIZE, SIZE]
        assert late == "all_reduce 'late' cannot be submitted: the queue was shut down"


def leaving(group: dist.ProcessGroup, first: int) -> str:
    """One rank shuts the queue down while the others wait for it."""
    rank, queue = dist.get_rank(group), CollectiveQueue()
    queue.submit("all_reduce", torch.ones(2), name="a").wait(60)
    if rank == first:
        queue.shutdown()
        return ""
    with pytest.raises(GroupError) as error:
        queue.submit("all_reduce", torch.ones(2), name="b").wait(60)
    if first:
        others = [other for other in range(SIZE) if other != first]
        assert queue.submit("all_reduce", torch.ones(1), name="c", participants=others).result(60) == SIZE - 1
    queue.shutdown()
    return str(error.value)


@pytest.mark.parametrize("first", [2, 0])
def test_who_shuts_down_does_not_hang_the_others(world: World, first: int):
    found = world.results(leaving, first)
    told = f"all_reduce 'b' among ranks 0, 1, 2, 3: rank {first} shut the queue down and did not submit it"
    assert [each for rank, each in enumerate(found) if rank != first] == [told] * 3


def idle(group: dist.ProcessGroup) -> float:
    """Share of a core that the process needs while nothing is submitted."""
    queue = CollectiveQueue()
    queue.submit("all_reduce", torch.ones(2), name="a").wait(60)
    dist.barrier()
    cpu, begin = time.process_time(), time.monotonic()
    time.sleep(1.0)
    used = (time.process_time() - cpu) / (time.monotonic() - begin)
    dist.barrier()
    queue.shutdown()
    return used


def test_idle_costs_next_to_nothing(world: World):
    assert max(world.results(idle)) < 0.2


def bad_input(group: dist.ProcessGroup) -> list[str]:
    rank, queue, errors = dist.get_rank(group), CollectiveQueue(), []
    for wrong in (
        {"participants": [0, 4]},
        {"participants": [(rank + 1) % SIZE]},
        {"operation": "broadcast"},
        {"op": "median"},
        {"tensor": torch.ones(2, dtype=torch.int64), "op": "mean"},
        {"tensor": torch.ones(3), "operation": "reduce_scatter"},
        {"tensor": torch.ones(2).to_sparse()},
        {"tensor": torch.ones(1).expand(5)},
        {"name": 7},
        {"priority": math.inf},
        {"priority": math.nan},
    ):
        arguments = {"operation": "all_reduce", "tensor": torch.ones(4), "name": "x"} | wrong
        with pytest.raises((ValueError, TypeError)) as error:
            queue.submit(arguments.pop("operation"), arguments.pop("tensor"), **arguments)
        errors.append(str(error.value))
    for used in ({0: math.nan}, {0: 1.5}, {4: 0.5}):
        with pytest.raises(ValueError, match="shares from 0 to 1 of hosts from 0 to 0"):
            queue.busy(used)
    # Of NumPy's numbers too; and the queue goes on.
    everyone, urgent = np.arange(SIZE), np.float64(2)
    handle = queue.submit("all_reduce", torch.ones(1), name="x", participants=everyone, priority=urgent)
    assert float(handle.result(30)) == SIZE
    queue.shutdown()
    return errors


def test_bad_input_is_told_at_once(world: World):
    for errors in world.results(bad_input):
        assert len(errors) == 11
        assert all("\n" not in error for error in errors)
    with pytest.raises(ValueError, match="chunk_bytes must be positive, got 0"):
        CollectiveQueue(chunk_bytes=0)


def test_alone():
    queue = CollectiveQueue()
    tensor = torch.arange(4.0)
    assert queue.submit("all_reduce", tensor, name="a", op="mean").result() is tensor
    assert queue.submit("all_gather", tensor, name="a").result().tolist() == [0, 1, 2, 3]
    queue.shutdown()
    with pytest.raises(GroupError, match="the queue was shut down"):
        queue.submit("all_reduce", tensor, name="a")


def silent(group: dist.ProcessGroup) -> str:
    """Rank 0 answers nobody, as if it had died."""
    with mock.patch.object(queue_module, "coordinate", return_value=None):
        queue = CollectiveQueue(impatient())
    error = ""
    if dist.get_rank(group):
        with pytest.raises(GroupError) as raised:
            queue.submit("all_reduce", torch.ones(2), name="a").wait(6 * TIMEOUT_S)
        error = str(raised.value)
    dist.barrier()
    if dist.get_rank(group) == 1:
        queue.shutdown()
    else:
        del queue
    return error


def test_a_silent_rank_0_is_an_error_on_the_others(world: World):
    _, *errors = world.results(silent)
    told = "all_reduce 'a' among ranks 0, 1, 2, 3: rank 0 has said nothing for 10 s"
    assert errors == [told] * 3


def dying(group: dist.ProcessGroup) -> list[str]:
    """Rank 3 dies between two chunks."""
    rank, queue = dist.get_rank(group), CollectiveQueue(impatient(), chunk_bytes=4000)
    run = Piecewise.run

    def fatal(self, pattern, chunk, chunks):
        if rank == 3 and chunk == 2:
            os._exit(1)
        run(self, pattern, chunk, chunks)

    errors = []
    with mock.patch.object(Piecewise, "run", fatal):
        handles = [queue.submit("all_reduce", torch.ones(10_000), name="big")]
        if rank != 3:
            handles.append(queue.submit("all_reduce", torch.ones(1), name="later"))
        for handle in handles:
            with pytest.raises(GroupError) as error:
                handle.wait(6 * TIMEOUT_S)
            errors.append(str(error.value))
    queue.shutdown()
    return errors


def test_a_rank_that_dies_is_an_error_on_all_others(world: World):
    *others, dead = world.run(dying)  # the last test of this world
    assert isinstance(dead, EOFError)
    for errors in others:
        assert "all_reduce 'big' among ranks 0, 1, 2, 3: " in errors[0]
        assert "all_reduce 'later' among ranks 0, 1, 2, 3: " in errors[1]
        assert all("did not" in error for error in errors)


PROGRAM = """
import sys, torch, torch.distributed as dist
from kernel_pytorch.links.schedule.queue import CollectiveQueue
rank, address = int(sys.argv[1]), "tcp://127.0.0.1:" + sys.argv[2]
dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
queue = CollectiveQueue()
print(queue.submit("all_reduce", torch.ones(2), name="a").result(60).tolist())
"""


def test_a_program_that_does_not_shut_down_ends():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(port)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for program in programs:
            out, _ = program.communicate(timeout=200)
            assert (program.returncode, out) == (0, "[2.0, 2.0]\n")
    finally:
        for program in programs:
            program.kill()
            program.wait()
