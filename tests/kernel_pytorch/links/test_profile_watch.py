"""When a job does not go on, all ranks say where they stand."""

from __future__ import annotations

import inspect
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import watched_rank

from kernel_pytorch.links.profile import flight
from kernel_pytorch.links.profile.flight import Answer, Hang, hang_file, join_folder, read_hang
from kernel_pytorch.links.profile.record import CallRecord

SIZE = 3


def run(folder: Path, kind: str, size: int) -> None:
    """The ranks, to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, watched_rank.__file__, str(folder), str(rank), str(size), kind],
            env=os.environ | {"PORT": str(port), "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in range(size)
    ]
    try:
        for rank in ranks:
            rank.wait(120)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def line_of(function: object, text: str) -> str:
    lines, first = inspect.getsourcelines(function)
    return f"watched_rank.py:{first + next(at for at, line in enumerate(lines) if text in line)}"


def test_a_rank_that_does_not_come_says_where_it_is(tmp_path):
    run(tmp_path, "missing", SIZE)
    hang = read_hang(tmp_path)
    assert hang.missing == []
    assert [answer.rank for answer in hang.answers] == [0, 1, 2]
    *others, odd = hang.answers
    assert odd.main.endswith(line_of(watched_rank.elsewhere, "store.wait"))
    assert any("elsewhere" in frame for frame in odd.stack)
    assert (odd.calls, odd.pending, odd.failed) == ({"0": 1}, [], [])
    called = line_of(watched_rank.main, "torch.ones(7)")
    for answer in others:
        assert answer.main.endswith(called)
        assert answer.calls == {"0": 2}
        (call,) = answer.pending + answer.failed
        assert (call.operation, call.number, call.done) == ("all_reduce", 1, None)
        assert call.site.endswith(called)
    assert hang.asked_by in (0, 1)
    assert "all_reduce at" in hang.why
    for rank in range(SIZE):
        answer = msgspec.json.decode((tmp_path / hang_file(rank)).read_bytes(), type=Answer)
        sizes = [entry["input_sizes"] for entry in answer.flight_recorder]
        assert [[3]] in sizes
        assert ([[7]] in sizes) == (rank != SIZE - 1)
        assert any("watched_rank.py" in frame["filename"] for frame in answer.flight_recorder[-1]["frames"])


def test_a_dead_rank_is_missing(tmp_path):
    run(tmp_path, "dead", 2)
    hang = read_hang(tmp_path)
    assert hang.missing == [1]
    assert [answer.rank for answer in hang.answers] == [0]
    assert not (tmp_path / hang_file(1)).exists()


def answer_of(rank: int, *, restart: int = 0, failed: bool = True) -> Answer:
    call = CallRecord(
        group="0",
        number=4,
        operation="barrier",
        shape=[],
        dtype=None,
        nbytes=0,
        step=1,
        site="train.py:3",
        posted=1.0,
        done=None,
        waited=0.0,
        error="timed out",
    )
    failed_calls = [call] if failed else []
    return Answer(
        rank=rank,
        world_size=3,
        restart=restart,
        main="train.py:3",
        stack=[],
        pending=[],
        failed=failed_calls,
        calls={"0": 5},
    )


def test_answers_are_joined_without_rank_0(tmp_path):
    assert join_folder(tmp_path) is None
    for answer in (answer_of(0), answer_of(1, restart=1, failed=False), answer_of(2, restart=1)):
        flight.write(tmp_path, hang_file(answer.rank, answer.restart), answer)
    hang = join_folder(tmp_path)
    assert hang is not None
    assert hang.missing == [0]  # it answered before the restart
    assert hang.why == "rank 2: barrier at train.py:3: timed out"
    assert read_hang(tmp_path) == hang == join_folder(tmp_path)
    assert isinstance(hang, Hang)


def test_the_flight_recorder_is_read_without_calling_anything(monkeypatch):
    from torch._C import _distributed_c10d as c10d

    monkeypatch.setattr(c10d, "_dump_fr_trace", lambda: pickle.dumps({"entries": [{"frames": [1]}] * 5}))
    assert flight.flight_recorder(newest=2) == [{"frames": [1]}] * 2
    monkeypatch.setattr(c10d, "_dump_fr_trace", lambda: pickle.dumps({"entries": [Path("/")]}))
    assert flight.flight_recorder() is None
    monkeypatch.delattr(c10d, "_dump_fr_trace")
    assert flight.flight_recorder() is None


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON"])
def test_a_damaged_answer_is_an_error(tmp_path, content):
    (tmp_path / hang_file(0)).write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        join_folder(tmp_path)
