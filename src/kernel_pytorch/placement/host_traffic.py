"""What hosts send each other while the devices of a mesh are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .walk import Traffic

_Loads = npt.NDArray[np.float64]


def busiest_link(traffic: Traffic, hosts: Sequence[int]) -> float:
    """The most that a host sends to other hosts, or receives from them.

    Args:
        traffic: between positions.
        hosts: of each position.
    """
    on = np.array(hosts)[:, None] == np.unique(hosts)
    between = on.T.astype(float) @ traffic @ on
    np.fill_diagonal(between, 0.0)
    return float(max(between.sum(axis=0).max(initial=0.0), between.sum(axis=1).max(initial=0.0)))


class HostLinks:
    """The links of hosts, as the positions of a walk get hosts one after the other.

    Args:
        traffic: between the steps of the walk.
        count: of hosts.
    """

    def __init__(self, traffic: Traffic, count: int) -> None:
        self._traffic, self._count = traffic, count
        self._hosts: list[int] = []
        self._sent, self._received = [np.zeros(count)], [np.zeros(count)]

    def busiest_after(self) -> _Loads:
        """For each host, the busiest link if the next step were on it. A lower bound for all later steps."""
        to, back = self._of_next_step()
        found = np.zeros(self._count)
        for loads, gained, own in ((self._sent[-1], back, to), (self._received[-1], to, back)):
            after = np.tile(loads + gained, (self._count, 1))
            np.fill_diagonal(after, loads + own.sum() - own)
            np.maximum(found, after.max(axis=1), out=found)
        return found

    def add(self, host: int) -> None:
        """Put the next step on a host."""
        to, back = self._of_next_step()
        for stack, gained, own in ((self._sent, back, to), (self._received, to, back)):
            after = stack[-1] + gained
            after[host] = stack[-1][host] + own.sum() - own[host]
            stack.append(after)
        self._hosts.append(host)

    def remove(self) -> None:
        """Take back the last :meth:`add`."""
        for stack in (self._hosts, self._sent, self._received):
            stack.pop()

    def _of_next_step(self) -> tuple[_Loads, _Loads]:
        """What the next step sends to each host, and receives from it."""
        step = len(self._hosts)
        to, back = np.zeros(self._count), np.zeros(self._count)
        np.add.at(to, self._hosts, self._traffic[step, :step])
        np.add.at(back, self._hosts, self._traffic[:step, step])
        return to, back


def alike_hosts(
    hosts: Sequence[int], levels: npt.NDArray[np.int64], traits: Sequence[tuple[object, ...]]
) -> list[list[int]]:
    """For each device, the corresponding ones of hosts that are interchangeable with its own.

    Two hosts are if exchanging all their devices, the first for the first and so on, keeps every link.

    Args:
        hosts: of each device.
        levels: of the links between any two devices.
        traits: of each device; a device corresponds only to one with the same.
    """
    members: dict[int, list[int]] = {}
    for device, host in enumerate(hosts):
        members.setdefault(host, []).append(device)
    classes: dict[tuple[object, ...], list[list[list[int]]]] = {}
    for devices in members.values():
        known = classes.setdefault(tuple(traits[device] for device in devices), [])
        for like in known:
            if _interchangeable(levels, like[0], devices):
                like.append(devices)
                break
        else:
            known.append([devices])
    found: list[list[int]] = [[] for _ in hosts]
    for known in classes.values():
        for like in known:
            for same_place in zip(*like, strict=True):
                for device in same_place:
                    found[device] = [other for other in same_place if other != device]
    return found


def _interchangeable(levels: npt.NDArray[np.int64], a: Sequence[int], b: Sequence[int]) -> bool:
    one, other = np.array(a), np.array(b)
    rest = np.setdiff1d(np.arange(len(levels)), [*a, *b])
    inside = ~np.eye(len(a), dtype=bool)
    across = levels[np.ix_(one, other)]
    return bool(
        (levels[np.ix_(one, rest)] == levels[np.ix_(other, rest)]).all()
        and (levels[np.ix_(one, one)] == levels[np.ix_(other, other)])[inside].all()
        and (across == across.T).all()
    )
