"""The recording group against a plain one: same results, and all calls seen as they were made."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import recorded_calls as ranks
from worlds import World

from kernel_pytorch.links.profile.batches import keep_batches
from kernel_pytorch.links.profile.record import CallRecord, OverRecord, rank_file, settled


@pytest.fixture(scope="module")
def world():
    with World(2) as world:
        yield world


@pytest.mark.parametrize("number", range(len(ranks.KINDS)), ids=[kind.__name__ for kind in ranks.KINDS])
def test_every_call_is_seen_and_handed_on(world, number):
    for found in world.results(ranks.both, number):
        assert found["told"] == found["expected"]
        assert found["same"]
        assert found["numbers"] == list(range(len(found["told"])))
        assert all(found["over"])
        assert all(found["waited"])
        assert all(file.endswith("recorded_calls.py") for file in found["files"]), found["files"]


def test_ddp_trains_bit_for_bit_and_its_buckets_are_seen(world):
    for found in world.results(ranks.ddp):
        assert found["same"]
        assert found["bytes"] == 3  # steps
        assert found["buckets"] > 3  # more than one a step
        assert all(found["waited"])


def test_the_wait_at_the_end_of_a_backward_pass_is_seen(world):
    assert world.results(ranks.ddp_waits)[0]


def test_fsdp2_is_seen(world):
    matrix = 16 * 16 * ranks.FLOAT
    for found in world.results(ranks.fsdp):
        assert found["same"]
        gathers = [nbytes for operation, nbytes in found["told"] if operation == "all_gather"]
        scatters = [nbytes for operation, nbytes in found["told"] if operation == "reduce_scatter"]
        assert gathers[:2] == [matrix, matrix]
        assert scatters == [matrix, matrix]


def test_new_groups_and_meshes_are_recorded_in_place(world):
    for rank, found in enumerate(world.results(ranks.new_groups)):
        assert found["new_group"]
        assert found["mesh"]
        assert found["backend"] == "gloo"
        assert found["ranks"] == ([1, 0] if ranks.SORTS else [0, 1])
        assert found["by_name"]
        assert found["gone"]
        assert found["freed"]
        assert ("all_reduce", 12) in found["told"], rank
        assert ("all_reduce", 8) in found["told"]


def test_a_failed_call_is_recorded_as_failed(world):
    first, second = world.results(ranks.failing)
    assert first["refused"]
    assert second["refused"]
    assert first["alone"]
    assert first["uneven"]
    assert second["uneven"]
    refused = [("all_to_all", True, True), ("all_gather", True, True)]
    assert first["errors"] == [*refused, ("all_reduce", True, True)]
    assert second["errors"] == refused


def test_a_handle_tells_where_it_was_posted_and_how_long_it_was_waited_for(world):
    for found in world.results(ranks.late):
        assert found == dict.fromkeys(found, True)


def test_memory_is_bounded_and_the_file_has_all(world, tmp_path):
    for found in world.results(ranks.bounded, str(tmp_path)):
        assert found["kept"] == [(2, 2), (3, 3), (4, 4)]
        assert found["steps"] == 3
        lines = [json.loads(line) for line in (tmp_path / rank_file(found["rank"])).read_text().splitlines()]
        assert lines[0]["rank"] == found["rank"]
        assert [line["number"] for line in lines if line.get("type") == "call"] == [0, 1, 2, 3, 4]
        assert [line["id"] for line in lines if line.get("type") == "over"] == [0, 1, 2, 3, 4]
        assert [line["step"] for line in lines if line.get("type") == "step"] == [1, 2, 3, 4, 5]
        assert lines[-1]["error"] == "an end"


def test_all_ranks_get_all_records_and_nothing_of_that_is_recorded(world):
    for found in world.results(ranks.collected):
        assert found["silent"]
        assert found["ranks"] == [0, 1]
        assert found["records"] == [
            ["GroupRecord", "StepRecord", "CallRecord"],
            ["GroupRecord", "StepRecord", "StepRecord", "CallRecord"],
        ]


def test_what_was_noted_at_the_end_of_a_call_is_in_the_call():
    call = CallRecord(
        id=4,
        group="0",
        number=0,
        operation="barrier",
        shape=[],
        dtype=None,
        nbytes=0,
        step=0,
        site="",
        posted=1.0,
        done=None,
        waited=0.0,
    )
    over = OverRecord(id=4, done=3.0, waited=1.5, error="late")
    lost = OverRecord(id=9, done=3.0, waited=1.5)
    (found,) = settled([call, over, lost])
    assert (found.done, found.waited, found.error) == (3.0, 1.5, "late")


def test_no_group_to_wrap_is_an_error():
    from kernel_pytorch.links.profile.recorder import Recorder

    with pytest.raises(RuntimeError, match="init_process_group"):
        Recorder().wrap()
    with pytest.raises(RuntimeError, match="wrap a process group first"):
        _ = Recorder().records


class Backend:
    """As NCCL, if ``supports_coalescing``."""

    def __init__(self, supports_coalescing: bool) -> None:
        self.supports_coalescing = supports_coalescing


@pytest.mark.parametrize("gathers", [True, False])
def test_messages_go_in_one_batch_where_the_backend_can(gathers):
    """A stand-in for torch: no NCCL here."""
    log: list[object] = []

    @contextmanager
    def coalescing(group, device, async_ops):
        log.append(("begin", device, async_ops))
        yield SimpleNamespace(works=["one"])
        log.append("end")

    def isend(tensor, *, group, tag, group_dst):
        log.append(("send", tag, group_dst))

    def irecv(tensor, *, group, tag, group_src):
        log.append(("recv", tag, group_src))

    names = SimpleNamespace(
        batch_isend_irecv=lambda ops: ["plain"], _coalescing_manager=coalescing, isend=isend, irecv=irecv
    )
    keep_batches(names)
    kept = names.batch_isend_irecv
    keep_batches(names)
    assert names.batch_isend_irecv is kept
    inner = SimpleNamespace(_get_backend=lambda device: Backend(gathers))
    group, tensor = SimpleNamespace(inner=inner), SimpleNamespace(device="cuda")
    ops = [
        SimpleNamespace(op=op, tensor=tensor, group=group, tag=7, group_peer=peer)
        for op, peer in ((isend, 1), (irecv, 2))
    ]
    if gathers:
        assert names.batch_isend_irecv(ops) == ["one"]
        assert log == [("begin", "cuda", True), ("send", 7, 1), ("recv", 7, 2), "end"]
    else:
        assert names.batch_isend_irecv(ops) == ["plain"]
        assert log == []
