"""Shaped links: what passes and how fast, by plain sockets; worlds on them; nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from benchmarks.links import Links, why_no_delay, why_no_links
from worlds import HostWorld

pytestmark = pytest.mark.skipif(why_no_links() is not None, reason=f"shaped links: {why_no_links()}")
needs_delay = pytest.mark.skipif(why_no_delay() is not None, reason=f"delay: {why_no_delay()}")

MB = 1 << 20


@pytest.fixture(scope="module")
def world() -> Iterator[HostWorld]:
    with Links(3) as links, HostWorld(links, hosts=[0, 1, 0, 2]) as world:
        yield world


def _send(group: Any, address: str, source: int, target: int, megabytes: int) -> float | None:
    """On the target: seconds of the last half of what the source sends."""
    rank = dist.get_rank(group)
    if rank == target:
        with socket.create_server((address, 0)) as server:
            dist.send(torch.tensor(server.getsockname()[1]), source)
            connection = server.accept()[0]
        with connection:
            got, half = 0, None
            while some := connection.recv(MB):
                got += len(some)
                if half is None and got >= megabytes * MB // 2:
                    half = time.perf_counter()
            return time.perf_counter() - half if half else None
    if rank == source:
        port = torch.tensor(0)
        dist.recv(port, target)
        with socket.create_connection((address, int(port))) as connection:
            connection.sendall(bytes(megabytes * MB))
    return None


def _mbit_s(world: HostWorld, source: int, target: int, megabytes: int) -> float:
    """The better of two: other processes can only make it slower."""
    address = world.links.address(world.hosts[target])
    seconds = min(world.results(_send, address, source, target, megabytes)[target] for _ in range(2))
    return 8e-6 * megabytes * MB / 2 / seconds


def _round_trip_s(group: Any, address: str, source: int, target: int) -> float | None:
    """On the source: the shortest of a few."""
    rank = dist.get_rank(group)
    if rank == target:
        with socket.create_server((address, 0)) as server:
            dist.send(torch.tensor(server.getsockname()[1]), source)
            connection = server.accept()[0]
        with connection:
            while some := connection.recv(1):
                connection.sendall(some)
    if rank == source:
        port, times = torch.tensor(0), []
        dist.recv(port, target)
        with socket.create_connection((address, int(port))) as connection:
            for _ in range(9):
                begin = time.perf_counter()
                connection.sendall(b"x")
                connection.recv(1)
                times.append(time.perf_counter() - begin)
        return min(times)
    return None


def _trip(world: HostWorld, source: int, target: int) -> float:
    address = world.links.address(world.hosts[target])
    return world.results(_round_trip_s, address, source, target)[source]


def test_rates_of_hosts_and_of_pairs_change_while_ranks_run(world: HostWorld) -> None:
    links = world.links
    try:
        for rate, megabytes in ((40, 3), (200, 12)):
            links.shape(rate * 1e6)
            assert 0.6 * rate < _mbit_s(world, 0, 1, megabytes) < 1.05 * rate
        links.shape_pair(0, 1, 20e6)
        assert 12 < _mbit_s(world, 0, 1, 2) < 21
        assert 12 < _mbit_s(world, 1, 0, 2) < 21
        assert 30 < _mbit_s(world, 0, 3, 12) < 210
        links.shape(80e6, host=0)
        assert 48 < _mbit_s(world, 0, 3, 6) < 84
        links.shape_pair(0, 1, None)
        assert 48 < _mbit_s(world, 0, 1, 6) < 84
        assert _mbit_s(world, 0, 2, 32) > 100, "ranks of one host do not use the link"
    finally:
        links.shape_pair(0, 1, None)
        links.shape(None)
    assert _mbit_s(world, 0, 1, 32) > 100


@needs_delay
def test_a_delay_is_that_of_each_way_and_can_change(world: HostWorld) -> None:
    links = world.links
    try:
        links.delay(0.02)
        assert 0.04 <= _trip(world, 0, 1) < 0.08
        links.delay(0.0, host=0)
        assert 0.02 <= _trip(world, 0, 1) < 0.04
        assert 0.02 <= _trip(world, 1, 0) < 0.04
        links.delay(0.001)
        links.shape(40e6)
        assert 24 < _mbit_s(world, 0, 1, 3) < 42, "shaped as well"
        assert _trip(world, 0, 2) < 0.002, "not between ranks of one host"
    finally:
        links.shape(None)
        links.delay(0.0)
    assert _trip(world, 0, 1) < 0.02


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.001, marks=needs_delay)], ids=["direct", "delayed"])
def test_traffic_is_what_was_sent(world: HostWorld, delay: float) -> None:
    try:
        world.links.delay(delay) if delay else None
        for _ in range(3):  # what TCP sends again is counted again
            before = world.links.traffic()
            world.results(_send, world.links.address(1), 0, 1, 8)
            after = world.links.traffic()
            if after[0].sent_data - before[0].sent_data <= 8.08 * MB:
                break
    finally:
        world.links.delay(0.0) if delay else None
    assert after[0].sent_data - before[0].sent_data == pytest.approx(8 * MB, rel=0.01)
    assert after[1].received_data - before[1].received_data == pytest.approx(8 * MB, rel=0.01)
    assert after[0].sent_bytes - before[0].sent_bytes > after[0].sent_data - before[0].sent_data
    assert after[1].sent_data - before[1].sent_data < 0.1 * MB
    assert after[2].received_data - before[2].received_data < 0.1 * MB


def _sum_and_namespace(group: Any) -> tuple[float, str]:
    mine = torch.tensor([float(dist.get_rank(group) + 1)])
    dist.all_reduce(mine)
    return mine.item(), os.readlink("/proc/self/ns/net")


def test_ranks_run_on_their_hosts(world: HostWorld) -> None:
    sums, places = zip(*world.results(_sum_and_namespace), strict=True)
    assert sums == (10.0,) * 4
    assert places[0] == places[2]
    assert len({*places, os.readlink("/proc/self/ns/net")}) == 4


def _raise(group: Any) -> None:
    raise ValueError("wrong")


def test_what_a_rank_raises_is_raised_and_the_world_goes_on(world: HostWorld) -> None:
    with pytest.raises(ValueError, match="wrong"):
        world.results(_raise)
    assert world.results(_sum_and_namespace)[0][0] == 10.0


def _namespaces() -> set[str]:
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in shown.stdout.splitlines()}


def _running(command: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", command], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_nothing_is_left(end: str) -> None:
    length = f"9{os.getpid()}"
    program = (
        "import sys; from benchmarks.links import Links, why_no_delay\n"
        "with Links(2) as links:\n"
        "    why_no_delay() or links.delay(0.001)\n"
        f"    links.start(0, ['sleep', '{length}'])\n"
        "    print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        mine = {name for name in _namespaces() if f"{process.pid}-" in name}
        assert len(mine) == 3
        if end == "is killed":
            process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (mine & _namespaces() or _running(f"sleep {length}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not mine & _namespaces()
    assert not _running(f"sleep {length}")
