"""Which ranks share a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .facts import Hosts


@dataclass(frozen=True, kw_only=True)
class RankHome:
    """What a rank says of where it runs."""

    boot_id: str | None
    """Of the kernel: the same for all that was started on it since it booted."""
    network_namespace: str | None
    """Containers of one kernel may have networks of their own: for links they are hosts."""
    hostname: str | None = None
    """For people; two hosts may have the same."""


def group_by_host(homes: Sequence[RankHome]) -> Hosts:
    """The ranks of each host. A rank that does not know where it is counts as a host of its own.

    Args:
        homes: by rank.
    """
    found: dict[object, list[int]] = {}
    for rank, home in enumerate(homes):
        known = home.boot_id and home.network_namespace
        found.setdefault((home.boot_id, home.network_namespace) if known else rank, []).append(rank)
    return tuple(tuple(ranks) for ranks in found.values())


def host_names(homes: Sequence[RankHome], hosts: Hosts) -> tuple[str, ...]:
    """A name for each host: its hostname, with a number where several have the same, else a letter."""
    names = [homes[ranks[0]].hostname or _letters(host) for host, ranks in enumerate(hosts)]
    return tuple(
        name if names.count(name) == 1 else f"{name}#{names[: host + 1].count(name)}"
        for host, name in enumerate(names)
    )


def _letters(number: int) -> str:
    """a to z, aa, ab and so on."""
    name = ""
    while number >= 0:
        name = chr(ord("a") + number % 26) + name
        number = number // 26 - 1
    return name
