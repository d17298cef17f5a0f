"""Which part of a sequence each rank of a ring holds."""

from __future__ import annotations

from typing import Literal, get_args

from .validation import check_int

Sharding = Literal["contiguous", "zigzag"]
Chunk = tuple[int, int]


def check_sharding(sharding: str) -> None:
    """Raise ValueError unless ``sharding`` is a known layout."""
    if sharding not in get_args(Sharding):
        raise ValueError(f"sharding must be one of {', '.join(get_args(Sharding))}, got {sharding!r}")


def check_rank(rank: int, world_size: int) -> None:
    """Raise unless both are int and ``0 <= rank < world_size``."""
    check_int("rank", rank)
    check_int("world_size", world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got {rank=}, {world_size=}")


def chunks_of(rank: int, world_size: int, seq: int, sharding: str) -> list[Chunk]:
    """The positions ``[start, stop)`` that a rank holds, in the order in which it holds them.

    Contiguous: part ``rank`` of ``world_size`` equal parts. Zigzag: parts ``rank`` and ``2P - 1 - rank`` of
    ``2P``, which share the work of causal attention evenly. A ``seq`` that does not divide is taken as if
    padded at its end: what lies beyond ``seq`` belongs to no chunk.
    """
    check_sharding(sharding)
    check_rank(rank, world_size)
    if sharding == "contiguous":
        parts, mine = world_size, [rank]
    else:
        parts, mine = 2 * world_size, [rank, 2 * world_size - 1 - rank]
    length = -(-seq // parts)
    return [(min(seq, part * length), min(seq, (part + 1) * length)) for part in mine]
