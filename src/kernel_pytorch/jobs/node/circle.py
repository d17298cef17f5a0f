"""Nodes that have met, and what they tell each other, through the first of them. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

from ...errors import KernelPytorchError
from .link import SIGN_EVERY_S, Link, exchange, take_leave
from .place import Place

_ROUND_S = 0.25
_PAUSE_S = 0.02
BUSY_S = 60.0
"""How long a node may do something else than wait before the others take it for lost."""


class MeetingError(KernelPytorchError):
    """The nodes of a job did not meet.

    Args:
        missing: names of the nodes that were not found.
    """

    def __init__(self, why: str, fix: str | None = None, missing: Sequence[str] = ()) -> None:
        super().__init__(why, fix)
        self.missing = tuple(missing)


class Circle:
    """Nodes that have met. Messages arrive in the calls of :meth:`wait`, so call it twice a second.

    Between them a thread gives signs of life, as what a node does for the job may take long: start torchrun,
    write stacks, write to a disk that many nodes share. It stops when there was no call for :data:`BUSY_S`.

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
        self._waited_at, self._closed = monotonic(), Event()
        if links:
            Thread(target=self._give_signs, daemon=True).start()

    def wait(self, timeout_s: float) -> list[tuple[int, dict[str, Any]]]:
        """Wait for messages or a loss, which ``lost`` then has.

        Args:
            timeout_s: seconds after which it returns in any case.

        Returns:
            The messages, each with the index of its sender; empty if none came.
        """
        self._waited_at = monotonic()
        until = self._waited_at + timeout_s
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
            sleep(max(0.0, min(_PAUSE_S, until - monotonic())))  # one round for the signs of life of many

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
        self._closed.set()
        take_leave(self._links.values())
        self._links.clear()

    def _give_signs(self) -> None:
        while not self._closed.wait(SIGN_EVERY_S / 2):
            for link in list(self._links.values()) if monotonic() < self._waited_at + BUSY_S else ():
                link.give_sign()

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
