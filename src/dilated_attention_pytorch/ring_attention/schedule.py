"""What travels around a ring, and who uses it: pure arithmetic, no communication.

Letters: w segment length, r dilation rate. A chunk is an interval of positions that one rank holds; a rank's
rows are those of its chunks, one after the other.

Two chunks share at most one segment of a branch: [0, 10) and [10, 20) share [8, 16) for w = 8, of which the
one holds 8 and 9, the other 10 to 15. So all that a chunk's queries need of another chunk is, for each branch
and offset, every r-th row of one interval: a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.pattern import num_rows
from ..core.sharding import Chunk
from ..kernels.problem import Heads, Tile, head_groups


@dataclass(frozen=True)
class Block:
    """Keys and values of one branch, offset and interval, for the heads that share the offset."""

    keys: Tile
    """Rows and heads in the owner's shard."""
    queries: tuple[Tile, ...]
    """Rows and heads in the user's shard that see all of ``keys`` (causality aside), one tile per chunk."""

    @property
    def num_rows(self) -> int:
        """Rows of ``keys``."""
        return num_rows(self.keys.length, self.keys.rate, self.keys.offset)

    @property
    def num_heads(self) -> int:
        """Key/value heads of ``keys``."""
        heads = self.keys.heads.kv
        return len(range(heads.start, heads.stop, heads.step or 1))


def blocks_between(
    owner: Sequence[Chunk],
    user: Sequence[Chunk],
    branches: Sequence[tuple[int, int]],
    *,
    num_heads: int,
    group: int,
    first_head: int = 0,
    is_causal: bool,
) -> list[Block]:
    """What the chunks of ``user`` need of other chunks of ``owner``. Both ranks compute the same list.

    Args:
        owner, user: the chunks of two ranks, or both of the same rank.
        branches: (w, r) pairs.
        num_heads: query heads.
        group: query heads per key/value head.
        first_head: global index of query head 0.
        is_causal: leave out what comes after the queries.
    """
    blocks = []
    for w, r in branches:
        for index, keys in enumerate(owner):
            # Two chunks of the user need the same interval of these keys, or intervals in two segments.
            users: dict[Chunk, list[tuple[int, Chunk]]] = {}
            for user_index, queries in enumerate(user):
                shared = _shared(w, keys, queries, is_causal)
                if shared is not None:
                    users.setdefault(shared[0], []).append((user_index, shared[1]))
            for interval, asking in users.items():
                for offset, heads in _selections(r, num_heads, group, first_head):
                    tile = _tile(owner, index, interval, w, r, offset, heads)
                    if tile is not None:
                        tiles = (_tile(user, i, rows, w, r, offset, heads) for i, rows in asking)
                        blocks.append(Block(tile, tuple(x for x in tiles if x is not None)))
    return blocks


def _shared(w: int, keys: Chunk, queries: Chunk, is_causal: bool) -> tuple[Chunk, Chunk] | None:
    """The parts of two chunks that lie in one segment, or None; a chunk shares nothing with itself."""
    if keys == queries or keys[0] == keys[1] or queries[0] == queries[1]:
        return None
    if is_causal and keys[0] > queries[0]:
        return None
    first, last = sorted((keys, queries))
    segment = last[0] // w
    if (first[1] - 1) // w != segment:
        return None
    parts = {first: (max(first[0], segment * w), first[1]), last: (last[0], min(last[1], (segment + 1) * w))}
    return parts[keys], parts[queries]


def _selections(r: int, num_heads: int, group: int, first_head: int) -> Iterator[tuple[int, Heads]]:
    for offset in sorted({(first_head + head) % r for head in range(min(r, num_heads))}):
        for heads in head_groups(offset, r, num_heads, group, first_head):
            yield offset, heads


def _tile(
    chunks: Sequence[Chunk], index: int, interval: Chunk, w: int, r: int, offset: int, heads: Heads
) -> Tile | None:
    """The rows of ``interval``, a part of ``chunks[index]`` in one segment, that belong to the offset."""
    before = sum(stop - start for start, stop in chunks[:index])
    start, length = interval[0] - chunks[index][0] + before, interval[1] - interval[0]
    first = (offset - interval[0] % w) % r
    if not num_rows(length, r, first):
        return None
    return Tile(slice(None), heads, start=start, length=length, offset=first, rate=r)
