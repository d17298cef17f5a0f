"""The first node of a job: it listens until the others have come. Standard library only."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from .addresses import look_up, socket_address
from .circle import Circle, MeetingError
from .link import Link, exchange, take_leave
from .place import Place
from .proof import Hello, new_nonce, ports

_ROUND_S = 0.25
_PORT_WAIT_S = 5.0
"""Ports that are in use are tried again so long: the program that has one may be ending."""
_MOST_STRANGERS = 64
_LOOK = {
    "local": "see the log of the missing nodes",
    "slurm": "see logs/slurm-*.out in the job's folder, which must be on a file system that all nodes share",
}


class Reception:
    """The first node, until all have come. Arguments as of :func:`.rendezvous.meet`.

    Raises:
        MeetingError: it cannot listen.
    """

    def __init__(self, token: str, place: Place) -> None:
        self._token, self._place = token, place
        _allow_files(2 * len(place.names) + 2 * _MOST_STRANGERS)
        self._doors = _open_doors(place, ports(token, place.run_key))
        self._strangers: dict[Link, tuple[Hello, str] | None] = {}  # None: has not said anything
        self._nodes: dict[int, tuple[Link, str]] = {}  # with the address at which it called

    def gather(self, least: int, wait_s: float, stop: Callable[[], object]) -> Circle:
        """Wait for the others; see :func:`.rendezvous.meet`."""
        until = monotonic() + wait_s
        stopped = False
        try:
            while len(self._nodes) < len(self._place.names) - 1 and (left_s := until - monotonic()) > 0:
                if stopped := bool(stop()):
                    break
                self._receive(min(_ROUND_S, left_s))
            if len(self._nodes) + 1 < least and not stopped:
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
        return Circle(self._place, present, links, address, links[present[1]].own_address)

    def _receive(self, timeout_s: float) -> None:
        links = [*self._strangers, *(link for link, _ in self._nodes.values())]
        for door in exchange(links, timeout_s, self._doors):
            self._strangers |= dict.fromkeys(map(Link, _callers(door)))
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
        return MeetingError(why, _LOOK.get(self._place.target), missing)


def _allow_files(count: int) -> None:
    """Have the right to open as many files; the default of most systems is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard < 0 else min(count, hard), hard))


def _callers(door: socket.socket) -> Iterator[socket.socket]:
    for _ in range(_MOST_STRANGERS):
        try:
            yield door.accept()[0]
        except OSError:  # all are in, one has gone again, or this process has too many files open
            return


def _open_doors(place: Place, candidates: Sequence[int]) -> list[socket.socket]:
    """Listen at one port: on local at the addresses given, else at all that this machine has."""
    hosts = ["0.0.0.0", "::"]
    if place.target == "local":
        hosts = list(dict.fromkeys(address for name in place.addresses for address in _addresses(name)))
    until = monotonic() + _PORT_WAIT_S
    while True:
        whys = {}
        for port in candidates:
            doors, whys[port] = _listen_at(hosts, port)
            if doors:
                return doors
        if monotonic() > until:
            break
        sleep(_ROUND_S)
    told = ", ".join(f"{why} (port {port})" for port, why in whys.items())
    raise MeetingError(f"node {place.names[0]} cannot listen at {' or '.join(hosts)}: {told}")


def _listen_at(hosts: Iterable[str], port: int) -> tuple[list[socket.socket], str]:
    """A socket for each host that this machine has, or none, as where another has the port, and why."""
    doors: list[socket.socket] = []
    why = ""
    for host in hosts:
        try:
            doors.append(_open_door(host, port))
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                for door in doors:
                    door.close()
                return [], why
    return doors, why


def _addresses(name: str) -> list[str]:
    try:
        return look_up(name)
    except OSError as error:
        raise MeetingError(f"{name}, an address of the first node, does not resolve: {error}") from error


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
