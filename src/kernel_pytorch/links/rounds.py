"""In which rounds pairs of hosts are measured, so that no host's link carries two measurements at once."""

from __future__ import annotations


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
