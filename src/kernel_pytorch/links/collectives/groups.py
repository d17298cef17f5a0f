"""The process group of the collectives, made once and by all of its ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from ...groups import agree
from ..facts import Hosts, MeasuredLinks
from ..hosts import RankHome, group_by_host
from ..order import rank_order
from ..topology import warn_of_difference
from .flat import keeps_order


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of its own for the ranks of another. A place is a rank in that other one."""

    group: ProcessGroup | None
    """None: one rank."""
    place: int
    """Of this rank."""
    ranks: tuple[int, ...]
    """Global rank of each place."""
    found: Hosts
    """The places of each host, by boot id and network namespace."""
    links: MeasuredLinks
    order: tuple[int, ...]
    """Of the places in a ring."""
    seats: tuple[int, ...]
    """For each place its rank in :attr:`group`."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    @property
    def in_order(self) -> bool:
        """Whether the ranks of :attr:`group` are in :attr:`order`, and so torch's ring."""
        return [self.seats[place] for place in self.order] == list(range(self.size))

    @property
    def host_of(self) -> tuple[int, ...]:
        """By place."""
        return self.links.host_of

    def backend(self, device: torch.device) -> str | None:
        """Name of the backend for tensors of a device; None: there is none."""
        assert self.group is not None
        pairs = dist.get_backend_config(self.group).split(",")
        return dict(pair.split(":") for pair in pairs).get(device.type)


def alone(links: MeasuredLinks | None = None) -> Group:
    """One rank, which needs no process group."""
    links = links or MeasuredLinks(hosts=((0,),), basis="default")
    return Group(group=None, place=0, ranks=(0,), found=((0,),), links=links, order=(0,), seats=(0,))


def make_group(
    process_group: ProcessGroup | None,
    known: Callable[[], MeasuredLinks | None],
    home: Callable[[], RankHome],
    same: Mapping[str, Any],
) -> Group:
    """A group of the ranks of another, in an order in which few neighbours are on different hosts.

    All ranks call this. The new group has the timeout of the other one.

    Args:
        process_group: default: all ranks.
        known: returns the links of its ranks; None: hosts are found, and nothing is known of their links.
        home: where this rank runs.
        same: what must be the same on all ranks, for JSON.

    Raises:
        GroupError: the ranks disagree, or one failed or did not answer within the timeout.
        ValueError: the links are of another number of ranks.
    """
    parent = process_group or dist.group.WORLD
    assert parent is not None

    def fields() -> dict[str, Any]:
        size, links = dist.get_world_size(parent), known()
        if links is not None and links.size != size:
            raise ValueError(f"links are of {links.size} ranks, the process group has {size}")
        return {
            **same,
            "hosts": None if links is None else links.hosts,
            "_home": msgspec.to_builtins(home()),
            "_links": msgspec.to_builtins(links),
        }

    answers = agree(
        fields,
        process_group,
        what="make its collectives",
        fix="give the same topology and config on all ranks",
    )
    found = group_by_host([msgspec.convert(answer["_home"], RankHome) for answer in answers])
    # The figures of one rank, or they would choose differently.
    agreed = msgspec.convert(answers[0]["_links"], MeasuredLinks | None)
    ranks = tuple(dist.get_process_group_ranks(parent))
    unordered = Group(
        group=None,
        place=dist.get_rank(parent),
        ranks=ranks,
        found=found,
        links=agreed or MeasuredLinks(hosts=found, basis="default"),
        order=tuple(range(len(ranks))),
        seats=tuple(range(len(ranks))),
    )
    if unordered.place == 0:
        warn_of_difference(unordered.links.hosts, found)
    if len(ranks) == 1:
        return unordered
    return ordered(unordered, parent)


def ordered(group: Group, parent: ProcessGroup) -> Group:
    """``group`` with a process group in the order that its links ask for. All ranks call this."""
    order = rank_order(group.links).ranks
    lined_up = keeps_order()
    line = [group.ranks[place] for place in order] if lined_up else sorted(group.ranks)
    everywhere = len(line) == dist.get_world_size()
    in_order: dict[str, Any] = {"sort_ranks": False} if lined_up else {}
    own = dist.new_group(
        line,
        timeout=timeout_of(parent),
        backend=None if everywhere else dist.get_backend_config(parent),
        use_local_synchronization=not everywhere,
        group_desc="collectives",
        **in_order,
    )
    assert isinstance(own, ProcessGroup)
    return replace(
        group, group=own, order=tuple(order), seats=tuple(line.index(rank) for rank in group.ranks)
    )


def timeout_of(group: ProcessGroup) -> timedelta:
    """How long the group's collectives wait for a rank."""
    for device in ("cpu", torch.accelerator.current_accelerator()):
        try:
            found = group._get_backend(torch.device(device)).options._timeout if device else None
        except (AttributeError, RuntimeError):  # no backend for the device, or one that has no such option
            continue
        if isinstance(found, timedelta):
            return found
    return dist.default_pg_timeout


def names_of(group: Group) -> dict[str, list[int]]:
    """Who works with whom, as global ranks: each host, those that exchange between hosts, the ring."""
    hosts: Sequence[Sequence[int]] = group.links.hosts
    found = {f"node_{number}": [group.ranks[p] for p in places] for number, places in enumerate(hosts)}
    for number in range(max(map(len, hosts))):
        found[f"inter_node_gpu_{number}"] = [group.ranks[p[number]] for p in hosts if number < len(p)]
    return {**found, "ring": [group.ranks[place] for place in group.order]}
