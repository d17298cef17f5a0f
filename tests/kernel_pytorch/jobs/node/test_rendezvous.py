"""Nodes meet, in threads where nothing else is asked, and as processes that are killed and stopped."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel_pytorch.jobs.node import addresses
from kernel_pytorch.jobs.node.first import Reception
from kernel_pytorch.jobs.node.link import MAX_LINE
from kernel_pytorch.jobs.node.place import Place
from kernel_pytorch.jobs.node.proof import Hello
from kernel_pytorch.jobs.node.rendezvous import Circle, MeetingError, meet, ports

TOKEN = "the token"
PATIENCE_S = 60.0


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A start of a job that no other test has, and of which all ports are free."""
    for number in range(100):
        key = f"{tmp_path} {number}"
        with contextlib.suppress(OSError), contextlib.ExitStack() as doors:
            for port in ports(TOKEN, key):
                doors.enter_context(socket.create_server(("", port)))
            return key
    raise AssertionError("no free ports")


def place(key: str, index: int, num_nodes: int = 2, **changes: Any) -> Place:
    names = tuple(f"node-{number}" for number in range(num_nodes))
    return replace(Place("local", index, names, ("127.0.0.1",), "1", key, None), **changes)


def meet_all(*places: Place, least: int | None = None, wait_s: float = PATIENCE_S) -> list[Circle]:
    with ThreadPoolExecutor(len(places)) as threads:
        meetings = [
            threads.submit(meet, TOKEN, of_node, least=least or len(places), wait_s=wait_s)
            for of_node in places
        ]
        return [meeting.result() for meeting in meetings]


def wait_for(*circles: Circle, done: Callable[[], bool], patience_s: float = PATIENCE_S) -> list[list]:
    """What each circle heard until ``done``."""
    heard: list[list] = [[] for _ in circles]
    until = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < until, (heard, [circle.lost for circle in circles])
        for messages, circle in zip(heard, circles, strict=True):
            messages += circle.wait(0.01)
    return heard


@contextlib.contextmanager
def met(*places: Place, **options: Any) -> Iterator[list[Circle]]:
    circles = meet_all(*places, **options)
    try:
        yield circles
    finally:
        with ThreadPoolExecutor(len(circles)) as threads:
            list(threads.map(Circle.close, circles))


def hear(circle: Circle, count: int, *others: Circle) -> list:
    """The next ``count`` messages to a node, while the others do their part."""
    heard: list = []
    until = time.monotonic() + PATIENCE_S
    while len(heard) < count:
        assert time.monotonic() < until, heard
        heard += circle.wait(0.01)
        for other in others:
            assert other.wait(0.01) == []
    return heard


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.0.0.1 localhost"])
def test_nodes_meet(key, address):
    if address == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6")
    with met(*(place(key, index, 3, addresses=tuple(address.split())) for index in (2, 0, 1))) as circles:
        numeric = {circle.address for circle in circles} | {circle.own_address for circle in circles}
        assert [(circle.index, circle.present, circle.lost) for circle in circles] == [
            (index, (0, 1, 2), {}) for index in (2, 0, 1)
        ]
        assert len(numeric) == 1
        assert numeric < {"127.0.0.1", "::1"}


def test_messages(key):
    with met(*(place(key, index, 3) for index in range(3))) as (first, second, third):
        first.broadcast({"to": "all"})
        assert hear(second, 1) == hear(third, 1) == [(0, {"to": "all"})]
        third.broadcast({"text": "é\n\0\ud800"})
        assert hear(first, 1, third) == [(2, {"text": "é\n\0\ud800"})]
        assert hear(second, 1, first) == [(2, {"text": "é\n\0\ud800"})]
        second.send(2, {"only": "for 2"})
        first.send(2, {"only": "for 2, too"})
        assert sorted(hear(third, 2, first, second)) == [(0, {"only": "for 2, too"}), (1, {"only": "for 2"})]
        third.send(0, {"n": 1})
        third.send(0, {"n": 2})
        assert hear(first, 2, second) == [(2, {"n": 1}), (2, {"n": 2})]


def test_a_node_that_is_busy_is_not_lost(key, monkeypatch):
    """But for one that never waits again."""
    monkeypatch.setattr("kernel_pytorch.jobs.node.link.SILENT_AFTER_S", 1.0)
    for module in ("link", "circle"):
        monkeypatch.setattr(f"kernel_pytorch.jobs.node.{module}.SIGN_EVERY_S", 0.1)
    with met(*(place(key, index, 3) for index in range(3))) as (first, second, busy):
        until = time.monotonic() + 3.0
        wait_for(first, second, done=lambda: time.monotonic() > until or bool(first.lost))
        assert first.lost == {}
        busy.send(1, {"still": "here"})
        assert hear(second, 1, first) == [(2, {"still": "here"})]
        monkeypatch.setattr("kernel_pytorch.jobs.node.circle.BUSY_S", 0.0)
        wait_for(first, second, done=lambda: bool(first.lost and second.lost))
        assert first.lost == second.lost == {2: "silent for 1 s"}


def test_what_cannot_be_sent(key):
    with met(place(key, 0), place(key, 1)) as (first, second):
        with pytest.raises(ValueError, match=r"index must be another node of \(0, 1\), got 2"):
            first.send(2, {})
        with pytest.raises(ValueError, match=r"index must be another node of \(0, 1\), got 1"):
            second.send(1, {})
        with pytest.raises(ValueError, match=f"a message must have at most {MAX_LINE} bytes, got"):
            second.send(0, {"log": "x" * MAX_LINE})
        second.send(0, {"log": "x" * (MAX_LINE - 100)})
        assert len(hear(first, 1, second)[0][1]["log"]) == MAX_LINE - 100


def test_what_is_sent_with_the_meeting_arrives(key):
    """Also where it is read at once with the news that all have come."""
    with ThreadPoolExecutor(2) as threads:
        second = threads.submit(meet, TOKEN, place(key, 1), least=2, wait_s=PATIENCE_S)
        first = meet(TOKEN, place(key, 0), least=2, wait_s=PATIENCE_S)
        first.broadcast({"n": 1})
        assert second.result().wait(PATIENCE_S) == [(0, {"n": 1})]
        threads.submit(first.close)
        second.result().close()


def test_what_is_sent_before_leaving_arrives(key):
    """Though the other side's words are unread, which makes the system discard what a plain close leaves."""
    with met(place(key, 0), place(key, 1)) as (first, second):
        for _ in range(20):
            second.send(0, {"unread": "x" * 1_000})
        first.send(1, {"the last": "word"})
        leaving = threading.Thread(target=first.close)
        leaving.start()
        heard = wait_for(second, done=lambda: 0 in second.lost)
        leaving.join()
        assert heard == [[(0, {"the last": "word"})]]
        assert second.lost == {0: "the connection ended"}
        second.send(0, {})  # nobody hears it
        assert second.wait(0.01) == []


def test_a_node_that_leaves_is_lost_to_all(key):
    with met(*(place(key, index, 3) for index in range(3))) as (first, second, third):
        third.close()
        wait_for(first, second, done=lambda: bool(first.lost and second.lost))
        assert first.lost == second.lost == {2: "the connection ended"}
        assert first.present == (0, 1, 2)
        second.send(0, {"still": "here"})
        assert hear(first, 1, second) == [(1, {"still": "here"})]


def test_many_nodes_need_many_files():
    script = """
import resource
from kernel_pytorch.jobs.node.place import Place
from kernel_pytorch.jobs.node.rendezvous import meet
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
names = tuple(str(number) for number in range(300))
meet("the token", Place("local", 0, names, ("127.0.0.1",), "1", "many", None), least=1, wait_s=0)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 600


def test_a_single_node_needs_nobody(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    circle = meet(TOKEN, place("key", 0, 1), least=1, wait_s=0)
    assert (circle.index, circle.present, circle.lost) == (0, (0,), {})
    assert (circle.address, circle.own_address) == (None, None)
    before = time.monotonic()
    assert circle.wait(0.05) == []
    assert time.monotonic() - before >= 0.05
    circle.broadcast({"to": "nobody"})
    circle.close()


def test_some_are_enough_when_the_time_is_over(key):
    with met(place(key, 0, 3), place(key, 2, 3), least=2, wait_s=1.5) as circles:
        assert [circle.present for circle in circles] == [(0, 2)] * 2


def test_too_few(key):
    """All that came are told."""
    with ThreadPoolExecutor(2) as threads:
        meetings = [
            threads.submit(meet, TOKEN, place(key, index, 4), least=4, wait_s=1.5) for index in (0, 2)
        ]
        raised = [meeting.exception() for meeting in meetings]
    why = "only 2 of 4 nodes met within 1.5 s, at least 4 are needed; missing: node-1, node-3"
    assert raised[0].missing == ("node-1", "node-3")
    assert [str(error) for error in raised] == [
        f"{why}: see the log of the missing nodes",
        f"the first node, node-0, gave up: {why}",
    ]


def test_least_of_one(key):
    circle = meet(TOKEN, place(key, 0), least=1, wait_s=0)
    assert (circle.present, circle.address) == ((0,), None)


def test_a_first_node_that_is_asked_to_stop_waits_for_nobody_else(key):
    """It still knows those who came, and can tell them."""
    reception = Reception(TOKEN, place(key, 0, 3))
    with ThreadPoolExecutor(2) as threads:
        second = threads.submit(meet, TOKEN, place(key, 1, 3), least=1, wait_s=PATIENCE_S)
        first = reception.gather(3, PATIENCE_S, stop=lambda: reception._nodes)
        circles = [first, second.result()]
        assert [circle.present for circle in circles] == [(0, 1)] * 2
        list(threads.map(Circle.close, circles))


def answer(caller: socket.socket, what: str) -> None:
    """Be another program at a port that a node calls."""
    caller.settimeout(PATIENCE_S)
    hello = json.loads(caller.recv(1_000))
    said = Hello("another token", "key", 1, "127.0.0.1", hello["nonce"])
    lines = {
        "closes": "",
        "is silent": "",
        "speaks HTTP": "HTTP/1.1 400 Bad Request\r\n\r\n",
        "has another token": json.dumps({"nonce": "0", "proof": said.proof("first", "0")}) + "\n",
        "returns the hello": json.dumps(hello) + "\n",
        "proves with nothing": '{"nonce": "\\ud800", "proof": "\\u00e9"}\n',
        "sends too much": "x" * 3_000,
    }
    caller.sendall(lines[what].encode())
    if what != "closes":
        caller.recv(1_000)  # until it is given up


def answer_all(door: socket.socket, what: str) -> None:
    with contextlib.suppress(OSError):  # the door was closed
        while True:
            caller, _ = door.accept()
            with caller, contextlib.suppress(OSError, ValueError):
                answer(caller, what)


@contextlib.contextmanager
def other_program(port: int, what: str) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)) as door:
        thread = threading.Thread(target=answer_all, args=(door, what))
        thread.start()
        try:
            yield
        finally:
            door.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
            thread.join(PATIENCE_S)


OTHER_PROGRAMS = {
    "closes": "closed the connection",
    "is silent": "no answer",
    "speaks HTTP": "sent something that is no message",
    "has another token": "answered by a program that is not of this job",
    "returns the hello": "answered by a program that is not of this job",
    "proves with nothing": "answered by a program that is not of this job",
    "sends too much": "sent a line of more than 1024 bytes",
}


@pytest.mark.parametrize("what", OTHER_PROGRAMS)
def test_another_program_has_the_first_port(key, what):
    with other_program(ports(TOKEN, key)[0], what):
        with pytest.raises(MeetingError) as raised:
            meet(TOKEN, place(key, 1), least=2, wait_s=0.3)
        with met(place(key, 0), place(key, 1)) as circles:
            assert [circle.present for circle in circles] == [(0, 1)] * 2
    first, *others = ports(TOKEN, key)
    assert raised.value.missing == ("node-0",)
    assert str(raised.value) == (
        "node node-1 did not find the first node, node-0, within 0.3 s; tried 127.0.0.1: "
        f"{OTHER_PROGRAMS[what]} (ports {first}), Connection refused (ports {', '.join(map(str, others))}): "
        "the nodes of a job must reach each other at these ports"
    )


def test_the_ports_of_a_start_are_far_apart(key):
    assert [(port - 20_000) // 2_400 for port in ports(TOKEN, key)] == [0, 1, 2, 3, 4]


def test_a_port_that_becomes_free(key):
    with contextlib.ExitStack() as stack:
        for port in ports(TOKEN, key):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        threading.Timer(0.5, stack.pop_all().close).start()
        with met(place(key, 0), place(key, 1)) as circles:
            assert [circle.present for circle in circles] == [(0, 1)] * 2


def test_all_ports_are_taken(key, monkeypatch):
    monkeypatch.setattr("kernel_pytorch.jobs.node.first._PORT_WAIT_S", 0.1)
    with contextlib.ExitStack() as stack:
        for port in ports(TOKEN, key):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        with pytest.raises(MeetingError) as raised:
            meet(TOKEN, place(key, 0), least=2, wait_s=PATIENCE_S)
    told = ", ".join(f"Address already in use (port {port})" for port in ports(TOKEN, key))
    assert str(raised.value) == f"node node-0 cannot listen at 127.0.0.1: {told}"


def strange_calls(key: str) -> dict[str, list[Any]]:
    """What others say at the first node's port, by what they are: bytes, or a function of the answer."""

    def hello(index: Any = 1, token: str = TOKEN, run_key: str = key) -> Hello:
        return Hello(token, run_key, index, "127.0.0.1")

    def dump(message: Any) -> bytes:
        return json.dumps(message).encode() + b"\n"

    def prover(said: Hello, role: str = "node") -> list[Any]:
        return [
            dump(said.message()),
            lambda answer: dump({"proof": said.proof(role, json.loads(answer)["nonce"])}),
        ]

    mine = hello()
    return {
        "silent": [],
        "port scanner": [b"GET / HTTP/1.0\r\n\r\n"],
        "endless": [b"x" * 100_000],
        "nested": [b"[" * 1_000 + b"\n", b'{"a":' * 170 + b"\n"],
        "no node": [dump(hello(2).message())],
        "the first itself": [dump(hello(0).message())],
        "no number": [dump({**mine.message(), "index": "1"})],
        "no nonce": [dump({**mine.message(), "nonce": ""})],
        "wrong token": prover(hello(token="another token")),
        "an old start": prover(hello(run_key="another start")),
        "a mirror": [dump(mine.message()), lambda answer: answer],
        "the wrong role": prover(mine, "first"),
        "no proof": [dump(mine.message()), b'{"proof": null}\n'],
        "no text": [dump(mine.message()), b'{"proof": "\\ud800"}\n'],
        "slow": [dump(mine.message())],
    }


def test_strangers_neither_get_in_nor_in_the_way(key, monkeypatch):
    monkeypatch.setattr("kernel_pytorch.jobs.node.first._MOST_STRANGERS", 10)
    monkeypatch.setattr("kernel_pytorch.jobs.node.link.SILENT_AFTER_S", 2 * PATIENCE_S)
    port = ports(TOKEN, key)[0]
    with ThreadPoolExecutor(1) as threads, contextlib.ExitStack() as callers:
        first = threads.submit(meet, TOKEN, place(key, 0), least=2, wait_s=PATIENCE_S)

        def call() -> socket.socket:
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    return callers.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
                except ConnectionRefusedError:
                    assert time.monotonic() < until

        for what, said in strange_calls(key).items():
            caller = call()
            for say in said:
                with contextlib.suppress(ConnectionError):
                    caller.sendall(say(caller.recv(1_000)) if callable(say) else say)
            if what not in ("silent", "slow"):
                ended = b""
                with contextlib.suppress(ConnectionResetError):
                    while data := caller.recv(1_000):
                        ended = data
                assert b"met" not in ended, what
            assert not first.done(), what
        crowd = [call() for _ in range(100)]
        assert crowd[0].recv(1) == b""  # the oldest have to go
        second = meet(TOKEN, place(key, 1), least=2, wait_s=PATIENCE_S)
        assert first.result().present == second.present == (0, 1)
        threads.submit(first.result().close)
        second.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_stranger_that_talks_on_is_not_kept(key, monkeypatch):
    """It has five seconds to prove itself, whatever it says."""
    monkeypatch.setattr("kernel_pytorch.jobs.node.link.SILENT_AFTER_S", 0.3)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(meet, TOKEN, place(key, 0), least=1, wait_s=3)
        until = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < until
            with contextlib.suppress(ConnectionRefusedError):
                caller = socket.create_connection(("127.0.0.1", ports(TOKEN, key)[0]))
                break
        with caller, contextlib.suppress(ConnectionError):
            while not first.done():
                caller.sendall(b" ")
                time.sleep(0.01)
        assert not first.done()


def test_a_node_that_comes_twice(key):
    """One of both is told so, the other is in."""
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(meet, TOKEN, place(key, 0, 3), least=3, wait_s=PATIENCE_S)
        both = [threads.submit(meet, TOKEN, place(key, 1, 3), least=3, wait_s=1.5) for _ in range(2)]
        (refused,), (second,) = wait(both, PATIENCE_S, FIRST_COMPLETED)
        with pytest.raises(MeetingError, match="node 1 is already here"):
            refused.result()
        third = meet(TOKEN, place(key, 2, 3), least=3, wait_s=PATIENCE_S)
        assert first.result().present == second.result().present == third.present == (0, 1, 2)
        list(threads.map(Circle.close, (first.result(), second.result(), third)))


def test_a_node_that_is_lost_before_all_have_come(key):
    """It is missing."""
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(meet, TOKEN, place(key, 0, 3), least=2, wait_s=2)
        hello = Hello(TOKEN, key, 1, "127.0.0.1")
        until = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < until
            with contextlib.suppress(ConnectionRefusedError):
                caller = socket.create_connection(("127.0.0.1", ports(TOKEN, key)[0]), PATIENCE_S)
                break
        with caller:
            caller.sendall(json.dumps(hello.message()).encode() + b"\n")
            answer = json.loads(caller.recv(1_000))
            assert hello.proven("first", answer["nonce"], answer["proof"])
            caller.sendall(json.dumps({"proof": hello.proof("node", answer["nonce"])}).encode() + b"\n")
        assert first.exception().missing == ("node-1", "node-2")


def test_names_that_do_not_resolve_are_told(key, monkeypatch):
    def look_up(name: str) -> list[str]:
        if name == "gone":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if name == "slow":
            time.sleep(1)
        return ["127.0.0.1"]

    monkeypatch.setattr(addresses, "look_up", look_up)
    with pytest.raises(MeetingError) as raised:
        meet(TOKEN, place(key, 1, addresses=("gone", "here", "slow")), least=2, wait_s=0.3)
    tried = ", ".join(map(str, ports(TOKEN, key)))
    assert str(raised.value) == (
        "node node-1 did not find the first node, node-0, within 0.3 s; tried 127.0.0.1: "
        f"Connection refused (ports {tried}); gone does not resolve (Name or service not known); "
        "slow: the name server does not answer: the nodes of a job must reach each other at these ports"
    )


def test_a_name_that_is_known_later(key, monkeypatch):
    asked = []

    def look_up(name: str) -> list[str]:
        asked.append(name)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["127.0.0.1"]

    monkeypatch.setattr(addresses, "look_up", look_up)
    monkeypatch.setattr(addresses, "_AGAIN_S", 0.01)
    with met(place(key, 0), place(key, 1, addresses=("late",))) as circles:
        assert circles[1].address == "127.0.0.1"
    assert len(asked) == 3


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "localhost"]
)
def test_never_localhost_on_several_machines(key, name):
    with pytest.raises(MeetingError) as raised:
        meet(TOKEN, place(key, 1, target="slurm", addresses=(name,)), least=2, wait_s=PATIENCE_S)
    found = " and ".join(addresses.look_up(name))
    assert str(raised.value) == (
        f"node node-1 did not find the first node, node-0, within 60 s; tried {name}, which is {found}: "
        "every machine takes that for itself: the first node needs an address that other machines can reach"
    )


def test_localhost_is_skipped_where_there_is_more(key):
    with pytest.raises(MeetingError, match=r"tried 192\.0\.2\.1: .*; 127\.0\.0\.1, which is 127\.0\.0\.1:"):
        meet(
            TOKEN,
            place(key, 1, target="slurm", addresses=("127.0.0.1", "192.0.2.1")),
            least=2,
            wait_s=0.2,
        )


def test_localhost_where_two_nodes_are_one_machine(key):
    of_slurm = [place(key, index, target="slurm", one_machine=True) for index in range(2)]
    with met(*of_slurm) as circles:
        assert circles[0].address == circles[1].address == "127.0.0.1"


NODE = """
import json, os, select, sys
from kernel_pytorch.jobs.node.place import Place
from kernel_pytorch.jobs.node.rendezvous import meet
index, num_nodes, key = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
names = tuple(f"node-{number}" for number in range(num_nodes))
place = Place("local", index, names, ("127.0.0.1",), "1", key, None)
circle = meet("the token", place, least=num_nodes, wait_s=60)
print(json.dumps(["met", circle.present]), flush=True)
told = {}
while True:
    for sender, message in circle.wait(0.2):
        print(json.dumps(["heard", sender, message]), flush=True)
    for other in circle.lost.keys() - told.keys():
        told[other] = circle.lost[other]
        print(json.dumps(["lost", other, told[other]]), flush=True)
    if select.select([0], [], [], 0)[0]:
        data = os.read(0, 1)
        if not data:
            break
        circle.broadcast({"from": index})
"""


class Node:
    """A node's process; tells what happens line by line, and broadcasts when a byte is written to it."""

    def __init__(self, key: str, index: int, num_nodes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODE, str(index), str(num_nodes), key],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def tell(self) -> None:
        self.process.stdin.write(b"x")

    def heard(self) -> list[Any]:
        assert select.select([self.process.stdout], [], [], PATIENCE_S)[0], "it says nothing"
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def nodes(key: str) -> Iterator[Callable[[int, str], list[Node]]]:
    """Start as many nodes, which have met when this returns."""
    started: list[Node] = []

    def start(count: int, name: str = "") -> list[Node]:
        of_circle = [Node(key + name, index, count) for index in range(count)]
        started.extend(of_circle)
        for node in of_circle:
            assert node.heard() == ["met", list(range(count))]
        return of_circle

    yield start
    for node in started:
        node.process.kill()
        with node.process:
            pass


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_node_is_lost_at_once(nodes, victim):
    """Not for its silence."""
    of_circle = nodes(3)
    of_circle[victim].process.kill()
    told = [node.heard() for node in of_circle if node is not of_circle[victim]]
    assert told == [["lost", victim, "the connection ended"]] * 2


def test_stopped_nodes(nodes):
    """One is lost to the others for its silence. Two that were stopped together go on without any loss."""
    suspended, of_circle = nodes(2, "suspended"), nodes(3)
    for node in suspended:
        node.process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 6
    of_circle[2].process.send_signal(signal.SIGSTOP)
    assert [node.heard() for node in of_circle[:2]] == [["lost", 2, "silent for 5 s"]] * 2
    while time.monotonic() < until:
        time.sleep(0.05)
    of_circle[2].process.send_signal(signal.SIGCONT)
    assert of_circle[2].heard() == ["lost", 0, "the connection ended"]
    for node in suspended:
        node.process.send_signal(signal.SIGCONT)
    for node, other in (suspended, suspended[::-1]):
        node.tell()
        assert other.heard() == ["heard", suspended.index(node), {"from": suspended.index(node)}]
