from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.jobs.node import link as link_module
from kernel_pytorch.jobs.node.link import MAX_LINE, Lines, Link, exchange, line_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.dictionaries(st.text(st.characters()), VALUES, max_size=4)


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_messages_survive_any_cut(messages, sizes):
    data = b"".join(map(line_of, messages))
    assert data.count(b"\n") == len(messages)
    lines, heard = Lines(), []
    while data:
        for size in sizes:
            heard += lines.feed(data[:size])
            data = data[size:]
    assert heard == messages


def is_message(line: bytes) -> bool:
    try:
        return line.isascii() and isinstance(json.loads(line), dict)
    except ValueError:
        return False


@given(st.lists(st.binary(max_size=80) | st.sampled_from([b"{}\n", b"{", b"}\n"])), st.integers(1, 30))
def test_garbage_is_refused_or_a_message(chunks, limit):
    lines, kept = Lines(limit), b""
    for chunk in chunks:
        kept += chunk
        cut = kept.split(b"\n")
        try:
            heard = lines.feed(chunk)
        except ValueError:
            assert any(len(line) > limit or not is_message(line) for line in cut)
            return
        assert max(map(len, cut)) <= limit
        assert heard == [json.loads(line) for line in cut[len(cut) - 1 - chunk.count(b"\n") : -1]]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b'"{}"',
        b"{",
        b"[" * 60_000,
        "{}".encode("utf-16"),
        b"\xff",
        b'{"\xc3\xa9":1}',
    ],
)
def test_no_message(line):
    with pytest.raises(ValueError, match=r"^sent something that is no message$"):
        Lines().feed(line + b"\n")


def test_the_limit():
    longest = {"": "x" * (MAX_LINE - len('{"": ""}'))}
    assert Lines().feed(line_of(longest)) == [longest]
    with pytest.raises(
        ValueError, match=f"^a message must have at most {MAX_LINE} bytes, got {MAX_LINE + 1}: "
    ):
        line_of({"": longest[""] + "x"})
    with pytest.raises(ValueError, match=f"^sent a line of more than {MAX_LINE} bytes$"):
        Lines().feed(b" " * (MAX_LINE + 1))


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(link_module, "monotonic", clock)
    return clock


@pytest.fixture
def pair() -> Iterator[tuple[Link, socket.socket]]:
    """A trusted link, and the socket at its other end."""
    mine, other = socket.socketpair()
    other.setblocking(False)
    with mine, other:
        link = Link(mine)
        link.trust()
        yield link, other


def test_signs_of_life(clock, pair):
    link, other = pair
    for _ in range(10):
        clock.now += 0.5
        other.send(b"{}\n")
        exchange([link], 1)
    assert link.lost is None
    assert other.recv(1_000) == b"{}\n" * 5


def test_silence(clock, pair):
    link, _ = pair
    for _ in range(20):
        exchange([link], 0)
        assert link.lost is None
        clock.now += 0.25
    clock.now += 0.25
    exchange([link], 0)
    assert link.lost == "silent for 5 s"


def test_own_sleep_is_nobody_s_silence(clock, pair):
    link, other = pair
    clock.now += 60
    exchange([link], 0)
    assert link.lost is None
    clock.now += 1
    other.send(b"{}\n")
    exchange([link], 1)
    clock.now += 60  # again, having heard of it meanwhile
    exchange([link], 0)
    assert link.lost is None
    for _ in range(11):
        clock.now += 0.5
        exchange([link], 0)
    assert link.lost == "silent for 5 s"


def test_what_came_in_own_sleep_is_read_first(clock, pair):
    link, other = pair
    clock.now += 4
    exchange([link], 0)  # its sleep is excused once
    clock.now += 2.5
    other.send(b"{}\n")
    clock.now += 2.5
    exchange([link], 0)
    assert link.lost is None


def test_a_program_that_always_sleeps_still_notices_silence(clock, pair):
    link, _ = pair
    for _ in range(5):
        clock.now += 3
        exchange([link], 0)
    assert link.lost == "silent for 5 s"


def test_one_that_does_not_read_is_lost(clock, pair):
    """What waits for it does not fill the memory."""
    link, _ = pair
    for _ in range(1_000):
        link.write({"log": "x" * 60_000})
        if link.lost:
            break
    assert link.lost == "does not read what it is sent"
    exchange([link], 60)  # returns at once


def test_the_last_words_of_one_that_ends_are_heard(pair):
    link, other = pair
    other.send(b'{"a": 1}\n{"b": 2}\n{"c"')
    other.close()
    exchange([link], 1)
    assert link.take() == [{"a": 1}, {"b": 2}]
    exchange([link], 1)
    assert link.lost == "the connection ended"


def test_writing_to_one_that_has_ended(pair):
    """Its last words are heard all the same."""
    link, other = pair
    other.send(b'{"a": 1}\n')
    other.close()
    link.write({})
    assert link.sent_all
    exchange([link], 1)
    assert link.take() == [{"a": 1}]
    exchange([link], 1)
    assert link.lost == "the connection ended"


def test_what_does_not_fit_is_sent_when_it_is_read(pair):
    link, other = pair
    for number in range(14):
        link.write({"n": number, "log": "x" * 60_000})
    lines, heard = Lines(), []
    while len(heard) < 14:
        exchange([link], 0)
        if select.select([other], [], [], 0)[0]:
            heard += lines.feed(other.recv(1_000_000))
    assert [message["n"] for message in heard] == list(range(14))
    assert link.sent_all
