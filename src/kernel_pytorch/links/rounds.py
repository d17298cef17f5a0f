"""What is measured at the same time, so that no host's link carries two measurements at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .facts import Hosts

Flow = tuple[int, int]
"""From a rank to a rank."""
Bundle = tuple[Flow, ...]
"""Flows that are measured together, at the same time."""


def rounds_of(count: int) -> list[list[tuple[int, int]]]:
    """Rounds in which each pair of ``count`` hosts meets once, and no host is in two pairs of a round.

    They are as few as possible: count - 1, or count if that is odd (the circle method of round-robin
    tournaments). The pairs of a round can be measured at the same time, and each in both directions: these do
    not disturb each other on a link that carries both.
    """
    places: list[int | None] = [*range(count), *[None] * (count % 2)]  # whoever meets None rests
    rounds = []
    for _ in range(len(places) - 1 if count > 1 else 0):
        pairs = zip(places, reversed(places[len(places) // 2 :]), strict=False)
        rounds.append(sorted((min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None))
        places = [places[0], places[-1], *places[1:-1]]
    return rounds


def single(hosts: Hosts) -> list[list[Bundle]]:
    """Rounds of one flow from each host to each other."""
    found: list[list[Bundle]] = []
    for pairs in rounds_of(len(hosts)):
        found.append([((hosts[a][0], hosts[b][0]),) for a, b in pairs])
        found.append([((hosts[b][0], hosts[a][0]),) for a, b in pairs])
    return found


def inside(hosts: Hosts) -> list[list[Bundle]]:
    """A round of one flow inside each host that has two ranks or more."""
    found: list[Bundle] = [((ranks[0], ranks[1]),) for ranks in hosts if len(ranks) > 1]
    return [found] if found else []


def double(hosts: Hosts) -> list[list[Bundle]]:
    """Rounds of two flows at once: across the same two hosts, and from one host to two others.

    The first is for hosts of two ranks or more, the second for three hosts or more; where a host has two
    ranks, each sends one of the flows.
    """
    found: list[list[Bundle]] = []
    for pairs in rounds_of(len(hosts)):
        both = [(hosts[a], hosts[b]) for a, b in pairs if len(hosts[a]) > 1 and len(hosts[b]) > 1]
        if both:
            found.append([((a[0], b[0]), (a[1], b[1])) for a, b in both])
            found.append([((b[0], a[0]), (b[1], a[1])) for a, b in both])
    count = len(hosts)
    fans = [(a, (a + 1) % count, (a + 2) % count) for a in range(count)] if count > 2 else []
    for fan in _apart(fans):
        found.append([((hosts[a][0], hosts[b][0]), (hosts[a][-1], hosts[c][0])) for a, b, c in fan])
    return found


def _apart(groups: Iterable[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Rounds in which no host is in two groups: each group in the first round where there is room."""
    rounds: list[list[Sequence[int]]] = []
    for group in groups:
        for others in rounds:
            if not set(group) & {host for other in others for host in other}:
                others.append(group)
                break
        else:
            rounds.append([group])
    return rounds
