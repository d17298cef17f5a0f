"""Reading logs and events, also while they grow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_pytorch.jobs import logs
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.logs import follow_events, log_lines


def write(folder: JobFolder, attempt: int, name: str, data: bytes) -> Path:
    path = folder.path / "logs" / f"attempt-{attempt}" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(data)
    return path


def test_lines_of_all_ranks_and_of_one(folder: JobFolder):
    folder.claim_attempt({})
    folder.claim_attempt({})
    for rank in (10, 2):
        write(folder, 1, f"rank-{rank}.log", b"one\n\ntwo \xff\n")
    write(folder, 2, "rank-2.log", "schön\rer\nwithout an end".encode())
    write(folder, 2, "node-0.log", b"torchrun\n")
    of_first = ["one", "", "two \ufffd"]
    of_second = ["schön\rer", "without an end"]
    assert list(log_lines(folder, 2, None)) == [*of_first, *of_second]
    assert list(log_lines(folder, None, None)) == [
        *(f"[{rank}] {line}" for rank in (2, 10) for line in of_first),
        *(f"[2] {line}" for line in of_second),
    ]


def test_what_says_why_no_rank_began(folder: JobFolder):
    folder.claim_attempt({})
    assert list(log_lines(folder, None, None)) == []
    write(folder, 1, "node-0.log", b"nobody came\n")
    (folder.path / "logs" / "supervisor.log").write_bytes(b"no route\n")
    assert list(log_lines(folder, None, None)) == ["nobody came", "no route"]
    assert list(log_lines(folder, 0, None)) == []


def test_lines_are_followed_as_they_come(folder: JobFolder):
    told: list[str] = []

    def turns() -> Iterator[None]:
        yield  # there is no attempt yet
        folder.claim_attempt({})
        yield
        write(folder, 1, "rank-1.log", b"step 1\nste")
        yield
        assert told == ["[1] step 1"]
        write(folder, 1, "rank-1.log", b"p 2\n")
        write(folder, 1, "rank-0.log", b"step 1\n")
        yield
        assert told == ["[1] step 1", "[1] step 2", "[0] step 1"]
        folder.claim_attempt({})
        write(folder, 2, "rank-0.log", b"step 3\nlast words")

    for line in log_lines(folder, None, turns()):
        told.append(line)
    assert told[3:] == ["[0] step 3", "[0] last words"]


def test_a_line_that_does_not_end_is_not_kept_for_ever(folder: JobFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "_READ", 4)
    monkeypatch.setattr(logs, "_LONGEST", 10)
    folder.claim_attempt({})
    write(folder, 1, "rank-0.log", b"\r10%" * 6 + b" ok\nnext\n")
    assert list(log_lines(folder, 0, None)) == ["\r10%" * 3, "\r10%" * 3, " ok", "next"]


def test_events_are_followed(folder: JobFolder):
    told: list[str] = []

    def turns() -> Iterator[None]:
        yield
        folder.event("attempt", "attempt 1")
        yield
        assert told == ["attempt"]
        with (folder.path / "events.jsonl").open("ab") as file:
            file.write(b'{"torn by a node that lost pow')
        yield
        folder.event("end", "completed")

    for event in follow_events(folder, turns()):
        told.append(event["kind"])
    assert told == ["attempt", "end"]
    assert [event["kind"] for event in follow_events(folder, None)] == ["attempt", "end"]
