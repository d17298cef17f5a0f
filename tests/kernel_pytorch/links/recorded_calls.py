"""What ranks do in the tests of the recording group. The test processes import this."""

from __future__ import annotations

import gc
import inspect
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed import distributed_c10d as c10d
from torch.nn.parallel import DistributedDataParallel

from kernel_pytorch.groups import GroupError
from kernel_pytorch.links.collectives.collectives import Collectives
from kernel_pytorch.links.methods import CommunicationPattern
from kernel_pytorch.links.profile import exchange
from kernel_pytorch.links.profile.rank_main import record_groups
from kernel_pytorch.links.profile.recorder import Recorder

FLOAT = 4
SORTS = "sort_ranks" in inspect.signature(dist.new_group).parameters
"""Whether the order of ranks can be kept."""
NEW_NAMES = hasattr(dist, "all_gather_single")


def line() -> int:
    """Of the caller."""
    return inspect.currentframe().f_back.f_lineno


def told(recorder: Recorder) -> list[tuple[Any, ...]]:
    """The records, without times."""
    return [(c.operation, c.reduce, c.shape, c.dtype, c.nbytes, c.peer, c.error) for c in recorder.calls]


def collectives(group: dist.ProcessGroup) -> tuple[list[torch.Tensor], list[tuple[Any, ...]]]:
    """Every kind of call: the results, and what a record of each must say."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3) + rank
    wide = torch.arange(6.0 * size).reshape(2 * size, 3) * (rank + 1)
    results: list[torch.Tensor] = []
    expected: list[tuple[Any, ...]] = []

    def say(op: str, reduce: str | None, shape: list[int], nbytes: int, peer: int | None = None) -> None:
        expected.append((op, reduce, shape, "float32", nbytes, peer, None))

    a = x.clone()
    dist.all_reduce(a, group=group)
    say("all_reduce", "sum", [2, 3], 6 * FLOAT)
    b = x.clone()
    dist.all_reduce(b, dist.ReduceOp.MAX, group=group, async_op=True).wait()
    say("all_reduce", "max", [2, 3], 6 * FLOAT)
    c = x.clone()
    dist.broadcast(c, 1, group=group)
    say("broadcast", None, [2, 3], 6 * FLOAT, 1)
    d = x.clone()
    dist.reduce(d, 1, dist.ReduceOp.PRODUCT, group=group)
    say("reduce", "product", [2, 3], 6 * FLOAT, 1)
    results += [a, b, c] + [d] * (rank == 1)
    parts = [torch.empty(2, 3) for _ in range(size)]
    dist.all_gather(parts, x, group=group)
    say("all_gather", None, [2, 3], 6 * FLOAT * size)
    whole = torch.empty(2 * size, 3)
    gather = dist.all_gather_single if NEW_NAMES else dist.all_gather_into_tensor
    gather(whole, x, group=group)
    say("all_gather", None, [2, 3], 6 * FLOAT * size)
    part = torch.empty(2, 3)
    scatter = dist.reduce_scatter_single if NEW_NAMES else dist.reduce_scatter_tensor
    scatter(part, wide, group=group)
    say("reduce_scatter", "sum", [2 * size, 3], 6 * FLOAT * size)
    part2 = torch.empty(2, 3)
    dist.reduce_scatter(part2, list(wide.chunk(size)), group=group)
    say("reduce_scatter", "sum", [6 * size], 6 * FLOAT * size)
    turned = torch.empty_like(wide)
    dist.all_to_all_single(turned, wide, group=group)
    say("all_to_all", None, [2 * size, 3], 6 * FLOAT * size)
    results += [*parts, whole, part, part2, turned]
    mine = [torch.empty(2, 3) for _ in range(size)] if rank == 0 else None
    dist.gather(x, mine, 0, group=group)
    say("gather", None, [2, 3], 6 * FLOAT * size, 0)
    e = torch.empty(2, 3)
    dist.scatter(e, list(wide.chunk(size)) if rank == 0 else None, 0, group=group)
    say("scatter", None, [6 * size] if rank == 0 else [2, 3], 6 * FLOAT * size, 0)
    results += [*(mine or []), e]
    dist.barrier(group=group)
    expected.append(("barrier", None, [], None, 0, None, None))
    return results, expected


def messages(group: dist.ProcessGroup) -> tuple[list[torch.Tensor], list[tuple[Any, ...]]]:
    """Between ranks 0 and 1 of the group."""
    rank = dist.get_rank(group)
    if rank > 1:
        return [], []
    x, y = torch.full((5,), float(rank)), torch.empty(5)
    say = [
        ("send", None, [5], "float32", 20, 1 - rank, None),
        ("recv", None, [5], "float32", 20, 1 - rank, None),
    ]
    if rank == 0:
        dist.send(x, 1, group=group)
        dist.recv(y, 1, group=group)
    else:
        dist.recv(y, 0, group=group)
        dist.send(x, 0, group=group)
        say = say[::-1]
    z = torch.empty(5)
    ops = [dist.P2POp(dist.isend, x, 1 - rank, group), dist.P2POp(dist.irecv, z, 1 - rank, group)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return [y, z], [
        *say,
        ("send", None, [5], "float32", 20, 1 - rank, None),
        ("recv", None, [5], "float32", 20, 1 - rank, None),
    ]


def functional(group: dist.ProcessGroup) -> tuple[list[torch.Tensor], list[tuple[Any, ...]]]:
    """The collectives that torch.compile traces; they call from C++."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    x, wide = torch.arange(4.0) + rank, torch.arange(4.0 * size) * (rank + 1)
    results = [
        funcol.all_reduce(x, "sum", group) + 0,
        funcol.all_gather_tensor(x, 0, group) + 0,
        funcol.reduce_scatter_tensor(wide, "sum", 0, group) + 0,
        funcol.all_to_all_single(wide, None, None, group) + 0,
        funcol.broadcast(x, 0, group) + 0,
        *(each + 0 for each in funcol.all_reduce_coalesced([x, x + 1], "max", group)),
        *(each + 0 for each in funcol.all_gather_into_tensor_coalesced([x, x], group)),
        *(each + 0 for each in funcol.reduce_scatter_tensor_coalesced([wide, wide], "sum", [0, 0], group)),
    ]
    f = "float32"
    return results, [
        ("all_reduce", "sum", [4], f, 16, None, None),
        ("all_gather", None, [4], f, 16 * size, None, None),
        ("reduce_scatter", "sum", [4 * size], f, 16 * size, None, None),
        ("all_to_all", None, [4 * size], f, 16 * size, None, None),
        ("broadcast", None, [4], f, 16, 0, None),
        ("all_reduce", "max", [8], f, 32, None, None),
        ("all_gather", None, [8], f, 32 * size, None, None),
        ("reduce_scatter", "sum", [8 * size], f, 32 * size, None, None),
    ]


def coalesced(group: dist.ProcessGroup) -> tuple[list[torch.Tensor], list[tuple[Any, ...]]]:
    """Several collectives in one."""
    x, y = torch.arange(4.0), torch.arange(3.0) + dist.get_rank(group)
    with c10d._coalescing_manager(group):
        dist.all_reduce(x, group=group)
        dist.all_reduce(y, group=group)
    return [x, y], [("all_reduce", "sum", [7], "float32", 28, None, None)]


KINDS = (collectives, messages, functional, coalesced)


def both(group: dist.ProcessGroup, number: int) -> dict[str, Any]:
    """A kind of calls, plain and recorded."""
    kind, recorder = KINDS[number], Recorder()
    plain, _ = kind(group)
    recorded, expected = kind(recorder.wrap(group))
    return {
        "same": all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True)),
        "told": told(recorder),
        "expected": expected,
        "numbers": [call.number for call in recorder.calls],
        "over": [call.done is not None and call.posted <= call.done for call in recorder.calls],
        "waited": [0 <= c.waited <= c.done - c.posted for c in recorder.calls],
        "files": {call.site.rpartition(":")[0] for call in recorder.calls},
    }


def trained(group: dist.ProcessGroup, steps: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(4)])
    ddp = DistributedDataParallel(model, process_group=group, bucket_cap_mb=0.005)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    for step in range(steps):
        ddp(torch.full((4, 32), float(step + dist.get_rank(group)))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def ddp(group: dist.ProcessGroup) -> dict[str, Any]:
    plain, recorder = trained(group), Recorder()
    recorded = trained(recorder.wrap(group))
    size = sum(each.nbytes for each in recorded)
    buckets = [
        call for call in recorder.calls if call.operation == "all_reduce" and "backward" in _source(call)
    ]
    return {
        "same": all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True)),
        "bytes": sum(call.nbytes for call in buckets) / size,
        "buckets": len(buckets),
        "waited": [0 <= call.waited <= call.done - call.posted for call in buckets],
    }


def ddp_waits(group: dist.ProcessGroup) -> bool:
    """Rank 1 goes backwards when rank 0 has nothing left to do but wait: it must have noted that it did."""
    rank, recorder = dist.get_rank(group), Recorder()
    store, at_end = c10d._world.pg_map[group][1], torch.autograd.Variable._execution_engine.queue_callback
    model = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(4)])
    ddp = DistributedDataParallel(model, process_group=recorder.wrap(group), bucket_cap_mb=0.005)
    hooked = model[0].weight
    for step in range(5):  # from the second on there are several buckets
        loss, ended = ddp(torch.ones(4, 32)).sum(), f"ended {step}"
        if rank == 0:
            hook = hooked.register_hook(lambda _, key=ended: at_end(lambda: store.set(key, "")))
        else:
            store.wait([ended])
        loss.backward()
        if rank == 0:
            hook.remove()
    calls = [call for call in recorder.calls if call.operation == "all_reduce"]
    assert all(call.waited <= call.done - call.posted for call in calls)
    return any(call.waited > 0 for call in calls)  # of one step rank 0 may come too late, on a busy machine


def _source(call: Any) -> str:
    file, _, number = call.site.rpartition(":")
    path = file if os.path.isabs(file) else os.path.join(os.getcwd(), file)
    with open(path) as lines:
        return lines.readlines()[int(number) - 1]


def fsdp(group: dist.ProcessGroup) -> dict[str, Any]:
    """FSDP2 on a mesh of the group."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    def run(on: dist.ProcessGroup) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(*[torch.nn.Linear(16, 16, bias=False) for _ in range(2)])
        mesh = DeviceMesh.from_group(on, "cpu")
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model(torch.full((2, 16), 1.0 + dist.get_rank(on))).square().mean().backward()
        return [parameter.grad.full_tensor() for parameter in model.parameters()]

    plain, recorder = run(group), Recorder()
    recorded = run(recorder.wrap(group))
    return {
        "same": all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True)),
        "told": [(c.operation, c.nbytes) for c in recorder.calls if c.operation != "broadcast"],
    }


@contextmanager
def recorded_groups(recorder: Recorder, *, check: bool = False) -> Iterator[None]:
    """New groups are recording ones, as in ``profile job``."""
    from kernel_pytorch.links.profile.group import recording

    def replace(group: Any, ranks: Any, timeout: Any) -> Any:
        return recording(recorder, group, check=check, in_place=True, ranks=list(ranks), timeout=timeout)

    helper, split = c10d._new_process_group_helper, c10d.split_group
    record_groups(c10d, replace)
    try:
        yield
    finally:
        c10d._new_process_group_helper, c10d.split_group = helper, split


def new_groups(group: dist.ProcessGroup) -> dict[str, Any]:
    """``new_group`` and meshes; ranks in any order; and what torch says of such a group."""
    rank, size, recorder = dist.get_rank(group), dist.get_world_size(group), Recorder()
    found: dict[str, Any] = {}
    with recorded_groups(recorder):
        as_given = {"sort_ranks": False} if SORTS else {}
        backwards = dist.new_group(list(range(size))[::-1], timeout=timedelta(seconds=30), **as_given)
        x = torch.full((3,), float(rank))
        dist.all_reduce(x, group=backwards)
        found["new_group"] = x.tolist() == [float(sum(range(size)))] * 3
        mesh = dist.init_device_mesh("cpu", (size, 1), mesh_dim_names=("dp", "tp"))
        y = torch.full((2,), float(rank))
        dist.all_reduce(y, group=mesh["tp"].get_group())  # of this rank alone
        found["mesh"] = y.tolist() == [float(rank)] * 2
        found["backend"] = dist.get_backend(backwards)
        found["ranks"] = dist.get_process_group_ranks(backwards)
        resolved = c10d._resolve_process_group(backwards.group_name)
        found["by_name"] = resolved is backwards
        found["only"] = dist.new_group([0]) is not None
        dist.destroy_process_group(backwards)
        found["gone"] = backwards not in c10d._world.pg_map
        inner = weakref.ref(backwards.inner)
        del backwards, resolved
        gc.collect()
        found["freed"] = inner() is None
    found["told"] = [(c.operation, c.nbytes) for c in recorder.calls]
    return found


def failing(group: dist.ProcessGroup) -> dict[str, Any]:
    """A call that is refused, and one that one rank does not come to."""
    rank, recorder = dist.get_rank(group), Recorder()
    recorded = recorder.wrap(group)
    found: dict[str, Any] = {}
    try:
        dist.all_to_all_single(torch.empty(4), torch.ones(4), [1, 1], [1, 1], group=recorded)
    except (RuntimeError, ValueError) as error:
        found["refused"] = bool(str(error))
    outputs = [torch.empty(4), *[torch.empty(5) for _ in range(recorded.size() - 1)]]
    try:
        dist.all_gather(outputs, torch.ones(4), group=recorded)  # refused before it is posted
    except (RuntimeError, ValueError) as error:
        found["uneven"] = bool(str(error))
    # Alone in a group of its own: the connections of a group on which a call has failed are closed.
    short = recorder.wrap(dist.new_group(timeout=timedelta(seconds=1)))
    if rank == 0:
        try:
            dist.all_reduce(torch.ones(4), group=short)
        except RuntimeError as error:
            found["alone"] = bool(str(error))
    dist.barrier(group=group)
    found["errors"] = [(c.operation, bool(c.error), c.done is None) for c in recorder.calls]
    return found


def late(group: dist.ProcessGroup) -> dict[str, Any]:
    """Rank 1 comes when rank 0 stands in its call."""
    rank, recorder = dist.get_rank(group), Recorder()
    recorded = recorder.wrap(group)
    store = c10d._world.pg_map[group][1]
    x = torch.ones(4)
    if rank == 0:
        work = dist.all_reduce(x, group=recorded, async_op=True)
        store.set("posted", "1")
    else:
        store.wait(["posted"])
        work = dist.all_reduce(x, group=recorded, async_op=True)
    posted = line() - 4 if rank == 0 else line() - 1
    work.wait()
    call = recorder.calls[0]
    stood = call.waited
    work.wait()
    dist.barrier(group=group)
    return {
        "line": call.site.endswith(f"{os.path.basename(__file__)}:{posted + (-1 if rank == 0 else 0)}"),
        "again": call.waited == stood,
        "within": 0 <= stood <= call.done - call.posted,
        "completed": work.is_completed() and work.is_success(),
        "result": x.tolist() == [dist.get_world_size(group)] * 4,
    }


def bounded(group: dist.ProcessGroup, folder: str) -> dict[str, Any]:
    """Steps, a memory of three calls, and the file, which has all of them."""
    recorder = Recorder(folder, keep=3)
    recorded = recorder.wrap(group)
    for _ in range(5):
        dist.all_reduce(torch.ones(2), group=recorded)
        recorder.step()
    recorder.close("an end")
    rank = dist.get_rank(group)
    return {"rank": rank, "kept": [(c.number, c.step) for c in recorder.calls], "steps": len(recorder.steps)}


def collected(group: dist.ProcessGroup) -> dict[str, Any]:
    recorder = Recorder()
    recorded = recorder.wrap(group)
    for _ in range(1 + dist.get_rank(group)):
        recorder.step()
    dist.all_reduce(torch.ones(2), group=recorded)
    before = len(recorder.calls)
    ranks = exchange.collect(recorder, recorded)
    return {
        "silent": len(recorder.calls) == before,
        "ranks": [rank.header.rank for rank in ranks],
        "records": [[type(record).__name__ for record in rank.records] for rank in ranks],
    }


def disagreement(group: dist.ProcessGroup, kind: str) -> dict[str, Any]:
    """What each rank hears when rank 1 makes another call than the others, with ``check``."""
    rank, recorder = dist.get_rank(group), Recorder()
    checked = recorder.wrap(dist.new_group(timeout=timedelta(seconds=20)), check=True)
    odd = rank == 1
    dtype = torch.int32 if odd and kind == "dtype" else torch.float32
    x = torch.ones(4 + (odd and kind == "shape"), dtype=dtype)
    op = dist.ReduceOp.MAX if odd and kind == "reduce" else dist.ReduceOp.SUM
    calls: list[Callable[[], object]] = []
    first = line() + 1
    calls.append(lambda: dist.all_reduce(x, op, group=checked))
    calls.append(lambda: dist.all_reduce(x, op, group=checked))
    if kind == "site":
        calls = calls[1:] if odd else calls
    elif kind == "step":
        calls = [calls[0]] * (2 if odd else 3)
    elif kind == "root":
        calls = [lambda: dist.broadcast(x, 1 if odd else 0, group=checked)]
    elif kind == "operation":
        calls = [lambda: dist.barrier(group=checked) if odd else dist.all_reduce(x, group=checked)]
    elif kind == "split":
        splits = [4, 0, *[0] * (checked.size() - 2)]
        calls = [
            lambda: dist.all_to_all_single(torch.empty(4 * checked.size()), x, None, splits, group=checked)
        ]
    error = None
    for number, call in enumerate(calls):
        try:
            if kind != "step" or not odd or number < 1:
                recorder.step()
            else:
                recorder.step()
                recorder.step()  # it has skipped the call of one step
            call()
        except GroupError as found:
            error = str(found)
            break
    dist.barrier(group=group)
    failed = [call.error for call in recorder.calls if call.error]
    stood = all(call.waited > 0 for call in recorder.calls if call.error is None)
    return {
        "stood": stood,
        "error": error,
        "first": first,
        "recorded": failed[:1] == [error] if error else not failed,
    }


def disagreement_of_patterns(group: dist.ProcessGroup, kind: str) -> tuple[str | None, int]:
    """As :func:`disagreement`, in a call that is carried out by messages; and its line."""
    odd = dist.get_rank(group) == 1
    with recorded_groups(Recorder(), check=True):
        ours = Collectives(group)
    x = torch.ones(4 + (odd and kind == "shape"), dtype=torch.int32 if odd and kind == "dtype" else None)
    op = "max" if odd and kind == "reduce" else "sum"
    tree = CommunicationPattern.TREE
    right = ours.all_gather(x[: 1 + dist.get_rank(group)].float(), pattern=tree).result()
    assert [len(part) for part in right] == list(range(1, 1 + ours.group.size))
    assert ours.all_reduce(torch.ones(3), pattern=tree).result().tolist() == [float(ours.group.size)] * 3
    error = None
    try:
        here = line() + 1
        ours.all_reduce(x, op, pattern=tree).result()
    except GroupError as found:
        error = str(found)
    ours.close()
    return error, here


def agreement(group: dist.ProcessGroup) -> bool:
    """Calls that look different on the ranks, and are right."""
    rank, size, recorder = dist.get_rank(group), dist.get_world_size(group), Recorder()
    checked = recorder.wrap(dist.new_group(timeout=timedelta(seconds=20)), check=True)
    plain, _ = collectives(group)
    same, _ = collectives(checked)
    messages(checked)
    if rank == 0:
        dist.broadcast(torch.ones(2), 0, group=checked)
    else:
        dist.broadcast(torch.zeros(2), 0, group=checked)
    dist.all_reduce(torch.ones([2, 3] if rank else [6]), group=checked)
    sends = [(rank + other) % 3 for other in range(size)]  # a symmetric matrix
    out = torch.empty(sum(sends))
    dist.all_to_all_single(out, torch.ones(sum(sends)), sends, sends, group=checked)
    return all(torch.equal(a, b) for a, b in zip(plain, same, strict=True)) and bool((out == 1).all())
