"""How the nodes of a job meet: at an address of the first node that has been proven to be its own.

The first node listens; each other one tries all that may lead there and stays connected to what answers with
the job's token. What nodes tell each other goes through the first. Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from ...errors import KernelPytorchError
from .addresses import Addresses, look_up, socket_address
from .link import Link, exchange, take_leave
from .place import Place
from .proof import Hello, new_nonce

_NUM_PORTS = 5
_ROUND_S = 0.25
_RETRY_S = 0.5
_MOST_STRANGERS = 64


class MeetingError(KernelPytorchError):
    """The nodes of a job did not meet."""


class Circle:
    """Nodes that have met. Everything is sent and received in the calls, so call :meth:`wait` twice a second.

    Args:
        place: this node's.
        present: indices of the nodes that met.
        links: to the others, by index; on all but the first node, to the first only.
        address: at which the first node was reached.
        own_address: at which this node was reached, or from which it reached the first.
    """

    def __init__(
        self,
        place: Place,
        present: Sequence[int] = (0,),
        links: Mapping[int, Link] | None = None,
        address: str | None = None,
        own_address: str | None = None,
    ) -> None:
        self.index = place.index
        self.present = tuple(sorted(present))
        """Indices of the nodes that met, this one included, whether lost since or not."""
        self.address = address
        """Of the first node, as another node reached it; None where it is alone."""
        self.own_address = own_address
        """By which this node was reached, or from which it reached the first; None where it is alone."""
        self.lost: dict[int, str] = {}
        """Why, by index, each node is lost."""
        self._links = dict(links or {})

    def wait(self, timeout_s: float) -> list[tuple[int, dict[str, Any]]]:
        """Wait for messages or a loss, which ``lost`` then has.

        Args:
            timeout_s: seconds after which it returns in any case.

        Returns:
            The messages, each with the index of its sender; empty if none came.
        """
        until = monotonic() + timeout_s
        num_lost = len(self.lost)
        messages: list[tuple[int, dict[str, Any]]] = []
        while True:
            exchange(self._links.values(), min(_ROUND_S, until - monotonic()))
            for index, link in list(self._links.items()):
                for line in link.take():
                    self._hear(index, line, messages)
                if link.lost:
                    self._lose(index, link.lost)
            if messages or len(self.lost) > num_lost or monotonic() >= until:
                return messages

    def send(self, index: int, message: Mapping[str, Any]) -> None:
        """Send a JSON object to a node; to one that is lost nothing is sent.

        Raises:
            ValueError: it is no node of the circle, or the message is too long.
        """
        if index not in self.present or index == self.index:
            raise ValueError(f"index must be another node of {self.present}, got {index}")
        self._pass_on({"from": self.index, "to": index, "message": message})

    def broadcast(self, message: Mapping[str, Any]) -> None:
        """Send a JSON object to all other nodes.

        Raises:
            ValueError: the message is too long.
        """
        self._pass_on({"from": self.index, "to": None, "message": message})

    def close(self) -> None:
        """Leave the circle. What was sent before still arrives; takes at most a second."""
        take_leave(self._links.values())
        self._links.clear()

    def _pass_on(self, line: Mapping[str, Any]) -> None:
        for index, link in self._links.items():
            if index != line["from"] and (self.index or line["to"] in (None, index)):
                link.write(line)

    def _hear(self, index: int, line: dict[str, Any], messages: list[tuple[int, dict[str, Any]]]) -> None:
        match line:
            case {"from": int(sender), "to": to, "message": dict(message)}:
                if to in (None, self.index):
                    messages.append((sender, message))
                if self.index == 0:
                    self._pass_on({**line, "from": index})
            case {"lost": int(other), "why": str(why)}:
                self.lost.setdefault(other, why)

    def _lose(self, index: int, why: str) -> None:
        self.lost.setdefault(index, why)
        self._links.pop(index).close()
        for link in self._links.values():
            link.write({"lost": index, "why": why})


def meet(token: str, place: Place, *, least: int, wait_s: float) -> Circle:
    """Wait for the other nodes.

    Args:
        token: the job's, which all its nodes know and nobody else.
        place: this node's.
        least: nodes with which to begin, this one counted, when ``wait_s`` has passed.
        wait_s: seconds to wait for all nodes.

    Raises:
        MeetingError: fewer came, or the first node was not found; says who is missing or what was tried.
    """
    if len(place.names) == 1:
        return Circle(place)
    if place.index == 0:
        return _Reception(token, place).gather(least, wait_s)
    return _Search(token, place).find(wait_s)


def ports(token: str, run_key: str) -> range:
    """The ports of which the first node takes one that is free, below those that connections are given."""
    digest = hashlib.sha256(f"{token} {run_key}".encode()).digest()
    first = 20_000 + int.from_bytes(digest[:4], "big") % 2_400 * _NUM_PORTS
    return range(first, first + _NUM_PORTS)


class _Reception:
    """The first node, until all have come."""

    def __init__(self, token: str, place: Place) -> None:
        self._token, self._place = token, place
        self._doors = _open_doors(place, ports(token, place.run_key))
        self._strangers: dict[Link, tuple[Hello, str] | None] = {}  # None: has not said anything
        self._nodes: dict[int, tuple[Link, str]] = {}  # with the address at which it called

    def gather(self, least: int, wait_s: float) -> Circle:
        until = monotonic() + wait_s
        try:
            while len(self._nodes) < len(self._place.names) - 1 and (left_s := until - monotonic()) > 0:
                self._receive(min(_ROUND_S, left_s))
            if len(self._nodes) + 1 < least:
                raise self._give_up(least, wait_s)
        except BaseException:
            for link, _ in self._nodes.values():
                link.close()
            raise
        finally:
            for link in self._strangers:
                link.close()
            for door in self._doors:
                door.close()
        present = [0, *sorted(self._nodes)]
        links = {index: self._nodes[index][0] for index in present[1:]}
        for link in links.values():
            link.write({"met": present})
        if not links:
            return Circle(self._place)
        address = self._nodes[present[1]][1]
        return Circle(self._place, present, links, address, _address(links[present[1]].socket.getsockname()))

    def _receive(self, timeout_s: float) -> None:
        links = [*self._strangers, *(link for link, _ in self._nodes.values())]
        for door in exchange(links, timeout_s, self._doors):
            with suppress(OSError):  # it has gone again, or this process has too many files open
                self._strangers[Link(door.accept()[0])] = None
        for link in list(self._strangers):
            for message in link.take():
                self._listen(link, message)
            if link.lost:
                link.close()
                self._strangers.pop(link, None)
        while len(self._strangers) > _MOST_STRANGERS + len(self._place.names):
            oldest = next(iter(self._strangers))
            oldest.close()
            del self._strangers[oldest]
        for index, (link, _) in list(self._nodes.items()):
            link.take()
            if link.lost:
                link.close()
                del self._nodes[index]

    def _listen(self, link: Link, message: dict[str, Any]) -> None:
        if link not in self._strangers:
            return
        known = self._strangers[link]
        if known is None:
            hello = Hello.heard(self._token, self._place.run_key, message)
            if hello is None or not 0 < hello.index < len(self._place.names):
                link.lost = link.lost or "is no node"
                return
            nonce = new_nonce()
            self._strangers[link] = hello, nonce
            link.write({"nonce": nonce, "proof": hello.proof("first", nonce)})
            return
        hello, nonce = known
        if not hello.proven("node", nonce, message.get("proof")):
            link.lost = link.lost or "does not know the token"
        elif hello.index in self._nodes:
            link.write({"refused": f"node {hello.index} is already here"})
            link.lost = link.lost or "came twice"
        else:
            link.trust()
            del self._strangers[link]
            self._nodes[hello.index] = link, hello.address

    def _give_up(self, least: int, wait_s: float) -> MeetingError:
        names = self._place.names
        missing = [name for index, name in enumerate(names) if index and index not in self._nodes]
        why = (
            f"only {len(self._nodes) + 1} of {len(names)} nodes met within {wait_s:g} s, at least {least} "
            f"are needed; missing: {', '.join(missing)}"
        )
        links = [link for link, _ in self._nodes.values()]
        for link in links:
            link.write({"gave up": why})
        take_leave(links)
        return MeetingError(why, "see the log of the missing nodes")


class _Search:
    """A node that looks for the first one."""

    def __init__(self, token: str, place: Place) -> None:
        self._token, self._place = token, place
        self._ports = ports(token, place.run_key)
        self._addresses = Addresses(place.addresses, loopback=place.target == "local" or place.one_machine)
        self._calls: dict[tuple[str, int], tuple[Link, Hello]] = {}
        self._again_at: dict[tuple[str, int], float] = {}
        self._why: dict[tuple[str, int], str] = {}

    def find(self, wait_s: float) -> Circle:
        until = monotonic() + wait_s
        first: tuple[str, int] | None = None
        try:
            while monotonic() < until or first is not None:
                if first is None:
                    self._call()
                    exchange([link for link, _ in self._calls.values()], _ROUND_S / 2)
                    first = self._answered()
                    continue
                link, _ = self._calls[first]
                exchange([link], _ROUND_S)
                while link.inbox:
                    match link.inbox.pop(0):
                        case {"met": [*present]}:
                            del self._calls[first]
                            own = _address(link.socket.getsockname())
                            return Circle(self._place, present, {0: link}, first[0], own)
                        case {"gave up": why}:
                            raise MeetingError(f"the first node, {self._place.names[0]}, gave up: {why}")
                        case {"refused": str(why)}:
                            link.lost = why
                if link.lost:
                    self._failed(first, link.lost)
                    first = None
                if self._addresses.hopeless():
                    break
        finally:
            for link, _ in self._calls.values():
                link.close()
        raise self._not_found(wait_s)

    def _call(self) -> None:
        for address in self._addresses.known():
            for port in self._ports:
                key = address, port
                if key not in self._calls and monotonic() >= self._again_at.get(key, 0):
                    hello = Hello(self._token, self._place.run_key, self._place.index, address)
                    try:
                        link = Link.to(*socket_address(address, port))
                    except OSError as error:
                        self._failed(key, error.strerror or str(error))
                        continue
                    link.write(hello.message())
                    self._calls[key] = link, hello

    def _answered(self) -> tuple[str, int] | None:
        for key, (link, hello) in list(self._calls.items()):
            for message in link.take()[:1]:
                nonce = message.get("nonce")
                if isinstance(nonce, str) and hello.proven("first", nonce, message.get("proof")):
                    link.write({"proof": hello.proof("node", nonce)})
                    link.trust()
                    for other in [other for other in self._calls if other != key]:
                        self._calls.pop(other)[0].close()
                    return key
                link.lost = "answered by a program that is not of this job"
            if link.lost:
                self._failed(key, link.lost)
        return None

    def _failed(self, key: tuple[str, int], why: str) -> None:
        self._why[key] = why
        self._again_at[key] = monotonic() + _RETRY_S
        if key in self._calls:
            self._calls.pop(key)[0].close()

    def _not_found(self, wait_s: float) -> MeetingError:
        place = self._place
        tried = []
        for address in self._addresses.known():
            reasons: dict[str, list[str]] = {}
            for port in self._ports:
                reasons.setdefault(self._why.get((address, port), "no answer"), []).append(str(port))
            told = [why if len(reasons) == 1 else f"{why} ({', '.join(of)})" for why, of in reasons.items()]
            tried.append(f"{address} ports {_text(self._ports)}: {', '.join(told)}")
        tried += [f"{name} {why}" for name, why in sorted(self._addresses.why.items())]
        return MeetingError(
            f"node {place.names[place.index]} did not find the first node, {place.names[0]}, within "
            f"{wait_s:g} s; tried {'; '.join(tried)}",
            "the nodes of a job must reach each other at these ports",
        )


def _open_doors(place: Place, candidates: range) -> list[socket.socket]:
    """Listen at one port: on local at the addresses given, else at all that this machine has."""
    why = ""
    hosts = ["0.0.0.0", "::"]
    if place.target == "local":
        hosts = list(dict.fromkeys(address for name in place.addresses for address in look_up(name)))
    for port in candidates:
        doors: list[socket.socket] = []
        for host in hosts:
            try:
                doors.append(_open_door(host, port))
            except OSError as error:
                why = error.strerror or str(error)
                if error.errno == errno.EADDRINUSE:
                    for door in doors:
                        door.close()
                    doors = []
                    break
        if doors:
            return doors
    raise MeetingError(
        f"node {place.names[0]} cannot listen at {' or '.join(hosts)}, ports {_text(candidates)}: {why}"
    )


def _open_door(host: str, port: int) -> socket.socket:
    family, where = socket_address(host, port)
    door = socket.socket(family)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        door.bind(where)
        door.listen(1_024)
        door.setblocking(False)
    except OSError:
        door.close()
        raise
    return door


def _address(name: Any) -> str:
    return str(name[0])


def _text(candidates: range) -> str:
    return f"{candidates[0]}-{candidates[-1]}"
