"""Messages between two processes: one JSON object a line, over a socket on which nothing ever blocks.

Each side gives a sign of life every second. A link is lost at once when the other process ends, and after 5
seconds without any sign when that is stopped or its node has no power. Standard library only.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Any

SIGN_EVERY_S = 1.0
SILENT_AFTER_S = 5.0
MAX_LINE = 1_048_576
"""Bytes of the longest line."""
_MAX_STRANGERS_LINE = 1_024
_MAX_UNSENT = 8 * MAX_LINE
_MAX_READ = 65_536
_SUSPENDED_AFTER_S = 2.0
_LATER = (errno.EAGAIN, errno.EINPROGRESS, errno.ENOTCONN)


class Lines:
    """Cuts a stream of bytes into messages.

    Args:
        limit: bytes of the longest line, its newline not counted.
    """

    def __init__(self, limit: int = MAX_LINE) -> None:
        self.limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that end in ``data``.

        Raises:
            ValueError: a line is too long, or no JSON object.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > self.limit for line in (*lines, self._rest)):
            raise ValueError(f"sent a line of more than {self.limit} bytes")
        return [_message(line) for line in lines]


def line_of(message: Mapping[str, Any]) -> bytes:
    """A message as it is sent.

    Raises:
        ValueError: it is longer than :data:`MAX_LINE`.
    """
    line = json.dumps(message).encode()
    if len(line) > MAX_LINE:
        raise ValueError(f"a message must have at most {MAX_LINE} bytes, got {len(line)}: {line[:80]!r}...")
    return line + b"\n"


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ValueError("sent something that is no message")
    return message


class Link:
    """One end of a connection, or of an attempt at one.

    Args:
        peer: connected, or connecting; closed by :meth:`close`.
    """

    def __init__(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        with suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = peer
        self.lost: str | None = None
        """Why nothing will come any more."""
        self.inbox: list[dict[str, Any]] = []
        self._trusted = False
        self._lines, self._unsent = Lines(_MAX_STRANGERS_LINE), b""
        self._heard_at = self._sent_at = self._tended_at = monotonic()
        self._excused = False
        self._sending = Lock()

    @classmethod
    def to(cls, family: socket.AddressFamily, where: Any) -> Link:
        """A link that is being made to the address ``where``.

        Raises:
            OSError: it cannot be.
        """
        caller = socket.socket(family)
        link = cls(caller)
        if (code := caller.connect_ex(where)) not in (0, *_LATER):
            caller.close()
            raise OSError(code, os.strerror(code))
        return link

    def trust(self) -> None:
        """The other side has proven itself: give it signs of life, and take long messages from it."""
        self._trusted, self._lines.limit = True, MAX_LINE
        self._heard_at = monotonic()

    def write(self, message: Mapping[str, Any]) -> None:
        """Send, at once or in :func:`exchange`; does nothing on a lost link. Any thread may.

        Raises:
            ValueError: the message is too long.
        """
        line = line_of(message)
        with self._sending:
            self._unsent += line
            self._sent_at = monotonic()
            self._flush()
            if len(self._unsent) > _MAX_UNSENT:
                self.lost = self.lost or "does not read what it is sent"

    def take(self) -> list[dict[str, Any]]:
        """The messages that have come since the last call."""
        taken, self.inbox = self.inbox, []
        return taken

    @property
    def own_address(self) -> str:
        """The address of this end."""
        return str(self.socket.getsockname()[0])

    @property
    def sent_all(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._unsent

    def events(self) -> int:
        """What :func:`exchange` waits for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def move(self) -> None:
        """Read and send what can be read and sent now."""
        with self._sending:
            self._flush()
        if self.lost is None:
            self._read()

    def tend(self) -> None:
        """Give a sign of life when it is time to, and notice that none has come.

        Time for which this very process was suspended does not count.
        """
        now = monotonic()
        gap, self._tended_at = now - self._tended_at, now
        if gap > _SUSPENDED_AFTER_S and not self._excused:
            self._heard_at, self._excused = min(now, self._heard_at + gap), True
        if self.lost is None and now - self._heard_at > SILENT_AFTER_S:
            self.lost = f"silent for {SILENT_AFTER_S:g} s" if self._trusted else "no answer"
        self.give_sign()

    def give_sign(self) -> None:
        """Give a sign of life when it is time to. Any thread may."""
        if self._trusted and self.lost is None and monotonic() - self._sent_at >= SIGN_EVERY_S:
            self.write({})

    def say_no_more(self) -> None:
        """Tell the other side that nothing more comes."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket at once; see :func:`take_leave`."""
        with self._sending:
            self.lost = self.lost or "closed"
            self.socket.close()

    def _read(self) -> None:
        try:
            data = self.socket.recv(_MAX_READ)
            if not data:
                self.lost = "the connection ended" if self._trusted else "closed the connection"
                return
            if self._trusted:  # a stranger has to prove itself in time, however much it talks
                self._heard_at = monotonic()
            self._excused = False
            self.inbox += self._lines.feed(data)
        except OSError as error:
            self._fail(error)
        except ValueError as error:
            self.lost = str(error)

    def _flush(self) -> None:
        try:
            while self._unsent and self.lost is None:
                self._unsent = self._unsent[self.socket.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except OSError as error:
            if not self._trusted:
                self._fail(error)
            elif error.errno not in _LATER:
                self._unsent = b""  # reading finds the end too, and the last words before it

    def _fail(self, error: OSError) -> None:
        if error.errno not in _LATER:
            self.lost = os.strerror(error.errno) if error.errno else str(error)


def exchange(
    links: Collection[Link], timeout_s: float, doors: Collection[socket.socket] = ()
) -> list[socket.socket]:
    """Wait until something arrives, at most ``timeout_s``; read, send, and tend all links.

    Returns:
        Those of the listening sockets ``doors`` at which somebody waits.
    """
    poll = select.poll()
    open_links = {link.socket.fileno(): link for link in links if link.lost is None}
    for descriptor, link in open_links.items():
        poll.register(descriptor, link.events())
    for door in doors:
        poll.register(door, select.POLLIN)
    if len(open_links) < len(links) or any(link.inbox for link in links):
        timeout_s = 0  # something to be told already
    ready = {descriptor for descriptor, _ in poll.poll(max(0.0, timeout_s) * 1_000)}
    for descriptor in ready & open_links.keys():
        open_links[descriptor].move()
    for link in open_links.values():
        link.tend()
    return [door for door in doors if door.fileno() in ready]


def take_leave(links: Collection[Link], patience_s: float = 1.0) -> None:
    """Close links once the other sides have read what was sent: a close with unread input discards it."""
    until = monotonic() + patience_s
    staying = [link for link in links if link.lost is None]
    while staying and monotonic() < until:
        for link in staying:
            if link.sent_all:
                link.say_no_more()
        exchange(staying, min(0.1, until - monotonic()))
        staying = [link for link in staying if link.lost is None]
    for link in links:
        link.close()
