"""A node that looks for the first one of its job. Standard library only."""

from __future__ import annotations

from time import monotonic

from .addresses import Addresses, socket_address
from .circle import Circle, MeetingError
from .link import Link, exchange
from .place import Place
from .proof import Hello, ports

_ROUND_S = 0.1
_RETRY_S = 0.5


class Search:
    """A node that looks for the first one. Arguments as of :func:`.rendezvous.meet`."""

    def __init__(self, token: str, place: Place) -> None:
        self._token, self._place = token, place
        self._ports = ports(token, place.run_key)
        self._addresses = Addresses(place.addresses, loopback=place.target == "local" or place.one_machine)
        self._calls: dict[tuple[str, int], tuple[Link, Hello]] = {}
        self._again_at: dict[tuple[str, int], float] = {}
        self._why: dict[tuple[str, int], str] = {}

    def find(self, wait_s: float) -> Circle:
        """Call everywhere until the first node answers; see :func:`.rendezvous.meet`."""
        until = monotonic() + wait_s
        try:
            while monotonic() < until and not self._addresses.hopeless():
                self._call()
                exchange([link for link, _ in self._calls.values()], _ROUND_S)
                first = self._answered()
                if first and (circle := self._wait_for_all(first)):
                    return circle
        finally:
            for link, _ in self._calls.values():
                link.close()
        raise self._not_found(wait_s)

    def _wait_for_all(self, first: tuple[str, int]) -> Circle | None:
        """Wait as long as the first node lives, which has its own limit; None if it is lost."""
        link, _ = self._calls[first]
        while link.lost is None:
            exchange([link], _ROUND_S)
            while link.inbox:
                match link.inbox.pop(0):
                    case {"met": [*present]}:
                        del self._calls[first]
                        return Circle(self._place, present, {0: link}, first[0], link.own_address)
                    case {"gave up": why}:
                        raise MeetingError(f"the first node, {self._place.names[0]}, gave up: {why}")
                    case {"refused": str(why)}:
                        link.lost = why
        self._failed(first, link.lost)
        return None

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
            told = [f"{why} (ports {', '.join(of)})" for why, of in reasons.items()]
            tried.append(f"{address}: {', '.join(told)}")
        tried += [f"{name}{why}" for name, why in sorted(self._addresses.why.items())]
        return MeetingError(
            f"node {place.names[place.index]} did not find the first node, {place.names[0]}, within "
            f"{wait_s:g} s; tried {'; '.join(tried)}",
            "the first node needs an address that other machines can reach"
            if self._addresses.hopeless()
            else "the nodes of a job must reach each other at these ports",
            [place.names[0]],
        )
