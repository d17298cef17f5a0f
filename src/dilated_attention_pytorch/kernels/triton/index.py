"""Tables of who sees whom if the caller's ``positions`` decide membership: rows and columns by their class.

A class of a branch is all tokens of one segment and one offset. Its tokens are sorted by their order in the
tensor, as in the ``sdpa`` backend, so that what causality hides from a tile is one end of each class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .visits import Branch, finest_first


class Tables(NamedTuple):
    """int32, for one or for each batch element."""

    tiles: Tensor
    """``[items, tiles, 2]``: first slot in ``rows``, how many."""
    runs: Tensor
    """``[items, tiles, branches, 3]``: first slot in ``columns``, how many, offset in the branch."""
    rows: Tensor
    """``[items, n]``"""
    columns: Tensor
    """``[items, branches, n]``"""


def tables_of(
    positions: Tensor, branches: tuple[Branch, ...], block: int, *, is_causal: bool, of_keys: bool
) -> Tables:
    """The tables of one kernel.

    Args:
        positions: int64 ``[b, n]``, ranks for membership; one table serves all rows of an expanded tensor.
        branches: (w, r) pairs; the tables have them finest first.
        block: rows of a tile.
        is_causal: leave out columns that no row of a tile sees.
        of_keys: the rows are keys, which later columns see; else queries, which see earlier ones.
    """
    items = positions[:1] if positions.stride(0) == 0 else positions
    ordered = finest_first(branches)
    tables = [_tables_of_one(item, ordered, block, is_causal, of_keys) for item in items]
    most = max(len(table.tiles) for table in tables)
    return Tables(
        *(
            torch.stack([_padded(x, most) if name in ("tiles", "runs") else x for x in column]).int()
            for name, column in zip(Tables._fields, zip(*tables, strict=True), strict=True)
        )
    )


def _padded(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


def _tables_of_one(
    positions: Tensor, branches: list[Branch], block: int, is_causal: bool, of_keys: bool
) -> Tables:
    # The id of a class is the lowest position it can hold. w = 8, r = 2: 13 is in 8 + 5 % 2 = 9 (9 11 13 15).
    classes = torch.stack([positions - positions % w + positions % w % r for w, r in branches])
    _, group, sizes = torch.unique(classes, dim=1, return_inverse=True, return_counts=True)
    rows = group.argsort(stable=True)
    tiles_of_group = (sizes + block - 1) // block
    group_of_tile = torch.arange(len(sizes), device=rows.device).repeat_interleave(tiles_of_group)
    before = torch.arange(len(group_of_tile), device=rows.device) - _starts(tiles_of_group)[group_of_tile]
    starts = _starts(sizes)[group_of_tile] + before * block
    counts = (sizes[group_of_tile] - before * block).clamp(max=block)

    columns, runs = [], []
    for (w, r), ids in zip(branches, classes, strict=True):
        column = ids.argsort(stable=True)
        ordered = ids[column]
        mine = ids[rows[starts]]
        begin, end = torch.searchsorted(ordered, mine), torch.searchsorted(ordered, mine, right=True)
        if is_causal:
            # (class, order in the tensor) as one number, which ascends along the columns: what a tile sees
            # of its class ends (for keys: begins) where its last (first) row would be inserted.
            key = torch.searchsorted(ordered, ordered) * len(ids) + column
            bound = begin * len(ids) + rows[starts if of_keys else starts + counts - 1]
            if of_keys:
                begin = torch.searchsorted(key, bound)
            else:
                end = torch.searchsorted(key, bound, right=True)
        columns.append(column)
        runs.append(torch.stack([begin, end - begin, (mine % w) % r], dim=1))
    return Tables(torch.stack([starts, counts], 1), torch.stack(runs, 1), rows, torch.stack(columns))


def _starts(sizes: Tensor) -> Tensor:
    return sizes.cumsum(0) - sizes
