"""Names of a node, as addresses to connect to or listen at. Standard library only."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from threading import Thread
from time import monotonic
from typing import Any

_AGAIN_S = 1.0


class Addresses:
    """The addresses behind some names, looked up in the background: a name server may not answer for long.

    Args:
        names: names and addresses.
        loopback: whether those that lead to the very machine that uses them count.
    """

    def __init__(self, names: Sequence[str], *, loopback: bool) -> None:
        self.why: dict[str, str] = {}
        """Of each name without an address: the reason, to be put after the name."""
        self._names, self._loopback = tuple(names), loopback
        self._found: dict[str, list[str]] = {}
        self._threads: dict[str, Thread] = {}
        self._again_at: dict[str, float] = {}

    def known(self) -> list[str]:
        """The addresses so far, each once, in the order of the names; asks again for the missing ones."""
        for name in self._names:
            thread = self._threads.get(name)
            busy = thread is not None and thread.is_alive()
            if name not in self._found and not busy and monotonic() >= self._again_at.get(name, 0):
                self.why.setdefault(name, ": the name server does not answer")
                self._again_at[name] = monotonic() + _AGAIN_S
                # A daemon: one that waits for a name server must not keep the program from ending.
                self._threads[name] = thread = Thread(target=self._look_up, args=(name,), daemon=True)
                thread.start()
                thread.join(0.1)  # most are known at once
        return list(dict.fromkeys(address for name in self._names for address in self._found.get(name, ())))

    def hopeless(self) -> bool:
        """Whether all names lead only to the machine that uses them."""
        return len(self._found) == len(self._names) and not any(self._found.values())

    def _look_up(self, name: str) -> None:
        try:
            addresses = look_up(name)
        except OSError as error:
            self.why[name] = f" does not resolve ({error.strerror or error})"
            return
        usable = [address for address in addresses if self._loopback or not is_loopback(address)]
        if usable:
            self.why.pop(name, None)
        else:
            self.why[name] = f", which is {' and '.join(addresses)}: every machine takes that for itself"
        self._found[name] = usable


def look_up(name: str) -> list[str]:
    """The addresses of a name, each once.

    Raises:
        OSError: it has none.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # longer than a name may be
        raise OSError(0, "not a name of a host") from error
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def socket_address(address: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The family and the address of a socket at a numeric ``address``.

    Raises:
        OSError: it is not an address that this machine can use.
    """
    family, *_, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    return family, where


def is_loopback(address: str) -> bool:
    """Whether an address leads to the machine that uses it, whichever that is."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return parsed.is_loopback or parsed.is_unspecified
