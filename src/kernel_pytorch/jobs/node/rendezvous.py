"""How the nodes of a job meet: at an address of the first node that has been proven to be its own.

The first node listens; each other one tries all that may lead there and stays connected to what answers with
the job's token. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable

from .circle import Circle as Circle
from .circle import MeetingError as MeetingError
from .first import Reception
from .place import Place
from .proof import ports as ports
from .search import Search


def meet(
    token: str, place: Place, *, least: int, wait_s: float, stop: Callable[[], object] = lambda: False
) -> Circle:
    """Wait for the other nodes.

    Args:
        token: the job's, which all its nodes know and nobody else.
        place: this node's.
        least: nodes with which to begin, this one counted, when ``wait_s`` has passed.
        wait_s: seconds to wait for all nodes.
        stop: asked several times a second on the first node; if true, it waits for no more nodes.

    Raises:
        MeetingError: fewer came, or the first node was not found; says who is missing or what was tried.
    """
    if len(place.names) == 1:
        return Circle(place)
    if place.index == 0:
        return Reception(token, place).gather(least, wait_s, stop)
    return Search(token, place).find(wait_s)
