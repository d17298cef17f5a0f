"""What a node reports of its ranks, with a stand-in for torchrun."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node import member as member_module
from kernel_pytorch.jobs.node.agent import RankExit
from kernel_pytorch.jobs.node.devices import Devices
from kernel_pytorch.jobs.node.head import Contract, Head
from kernel_pytorch.jobs.node.member import STALL_S, Member
from kernel_pytorch.jobs.node.place import Place

ORDER = {
    "attempt": 1,
    "nodes": [2, 2],
    "ranks_per_node": 1,
    "endpoint": "127.0.0.1:1",
    "max_restarts": 3,
    "checkpoint_every_s": 60.0,
    "timeouts": {},
}


class StandIn:
    """An agent that does nothing."""

    def __init__(self, launch: object) -> None:
        self.closing: frozenset[int] = frozenset()
        self.failed: frozenset[int] = frozenset()
        self.lines: tuple[str, ...] = ()
        self.exits: list[RankExit] = []

    def start(self) -> None:
        pass

    def poll(self) -> int | None:
        return None

    def new_exits(self) -> list[RankExit]:
        exits, self.exits = self.exits, []
        return exits

    def kill(self) -> None:
        pass


@pytest.fixture
def member(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Member]:
    monkeypatch.setattr(member_module, "Agent", StandIn)
    monkeypatch.setattr(member_module.health, "evidence", lambda: None)
    place = Place("local", 0, ("n1", "n2"), ("127.0.0.1",), "1", "key", None)
    made = Member(folder, {"python": sys.executable}, place, ORDER, None)
    yield made
    made.end()


def begin(member: Member, restart: int = 0, world: int = 2) -> subprocess.Popen[bytes]:
    """A rank that ends with exit code 0 when its stdin is closed."""
    rank = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    started = {"rank": 0, "pid": rank.pid, "restart": restart, "world": world, "time_s": time.monotonic()}
    started["log_from"] = 0
    (Path(member.beats) / "started-0.json").write_text(json.dumps(started))
    return rank


def kinds(member: Member, later_s: float = 0.0) -> list[str]:
    return [report["kind"] for report in member.reports(time.monotonic() + later_s)]


def test_a_node_whose_ranks_had_left_says_that_it_cannot_restart(member):
    with begin(member):
        assert "began" in kinds(member)
    member.allow_restart()
    assert "stalled" not in kinds(member, STALL_S / 2)
    assert "stalled" in kinds(member, STALL_S + 1)
    assert kinds(member, STALL_S + 2) == []  # once


@pytest.mark.parametrize("why", ["runs", "begins anew", "failed", "closing"])
def test_a_node_that_restarts_does_not_say_so(member, why):
    with begin(member) as rank:
        kinds(member)
        if why == "runs":
            member.allow_restart()
            assert "stalled" not in kinds(member, STALL_S + 1)
    if why == "runs":
        return
    if why in ("failed", "closing"):
        setattr(member.agent, why, frozenset([rank.pid]))
    member.allow_restart()
    with begin(member, 1) if why == "begins anew" else rank:
        assert "stalled" not in kinds(member, STALL_S + 1)


def test_ranks_that_start_after_a_request_to_stop_are_asked_too(member):
    member.stop()
    with begin(member) as rank:
        kinds(member)
        assert rank.wait(60) == -signal.SIGTERM  # it never called the interface


def allowed(member: Member) -> list[str]:
    return sorted(path.name for path in Path(member.beats).glob("restart-*"))


def test_restarts_are_allowed_as_torchrun_counts_them(member):
    """Where no rank has failed, it starts them again with those of the failed node, and counts nothing."""
    with begin(member) as rank:
        kinds(member)
        member.allow_restart()
        assert allowed(member) == []
        member.agent.exits = [RankExit(0, rank.pid, 1)]
        assert "failed" in kinds(member)
        member.allow_restart()
        assert allowed(member) == ["restart-1-allowed"]
    with begin(member, 3):  # more than was heard of
        kinds(member)
        member.allow_restart()
        assert allowed(member) == ["restart-1-allowed", "restart-3-allowed"]
        member.restart(1)
        assert allowed(member)[-1] == "restart-4-allowed"


def test_ranks_that_fail_and_begin_anew_before_a_node_leaves(member):
    """torchrun has counted a restart then, and counts the end of the new ones too."""
    with begin(member) as rank:
        kinds(member)
        member.agent.exits = [RankExit(0, rank.pid, 1)]
        kinds(member)
    with begin(member, 1) as rank:  # it has begun, but was not seen yet
        member.restart(1)
        assert rank.wait(60) == -signal.SIGKILL
    assert allowed(member) == ["restart-2-allowed"]


def test_ranks_that_count_on_a_node_that_has_left_start_once_more(member):
    with begin(member) as rank:
        kinds(member)
        member.agent.exits = [RankExit(0, rank.pid, 1)]
        kinds(member)
        member.restart(1)  # torchrun starts them as it is
    with begin(member, 1) as rank:
        kinds(member, 1)
        assert rank.wait(60) == -signal.SIGKILL
    assert allowed(member) == ["restart-1-allowed", "restart-2-allowed"]
    with begin(member, 2, world=1) as rank:
        kinds(member, 2)
        assert rank.poll() is None


@pytest.mark.parametrize("text", ["gpu:0 failed: Xid 79", None])
def test_what_a_node_says_of_its_health_and_devices_becomes_events(folder, monkeypatch, text):
    monkeypatch.setattr(member_module, "Agent", StandIn)
    monkeypatch.setattr(member_module.health, "evidence", lambda: text)
    place = Place("local", 1, ("n1", "n2"), ("127.0.0.1",), "1", "key", None)
    devices = Devices(note="NUMA binding: none, numactl is not installed")
    member = Member(folder, {"python": sys.executable}, place, ORDER, None, devices)
    try:
        with begin(member) as rank:
            reports = member.reports(time.monotonic())
        member.agent.exits = [RankExit(0, rank.pid, 1)]
        deadline = time.monotonic() + 60
        while "health" not in [report["kind"] for report in reports]:
            assert time.monotonic() < deadline
            reports += member.reports(time.monotonic())
    finally:
        member.end()
    head = Head(folder, 1, place.names, [0, 1], Contract(min_nodes=2, max_retries=3, max_requeues=20))
    for report in reports:
        head.take(1, report, 1.0)
    told = [("note", f"n2: {devices.note}")] + [("health", f"n2: {text}")] * (text is not None)
    assert [(event["kind"], event["text"]) for event in folder.events()] == told


def test_torchrun_ends_ranks_before_it_says_which_failed(member):
    with begin(member) as rank:
        kinds(member)
        member.agent.closing = frozenset([rank.pid])
        assert kinds(member) == ["closing"]
        assert kinds(member) == []
        member.agent.exits = [RankExit(0, rank.pid, 1)]
        assert kinds(member) == ["failed"]
