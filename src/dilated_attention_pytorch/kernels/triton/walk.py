"""What the kernels share: which rows a tile has, and which columns it visits.

Rows are what a program keeps: queries in the forward and for their gradient, keys for the gradients of keys
and values. Columns are what it walks over. A branch that offers key s to query p also offers key p to query
s, so one walk serves both directions.

The *position* of a row or column is its index in the whole sequence, int32. A tile's rows are every R-th
position (R the least common multiple of the dilation rates) in one *cell*, an interval in which no segment
ends. They lie in the same segments and are served by the same branches, so the tile's lowest position stands
for all of them. With branches (8, 1) and (16, 2), R is 2 and cells have length 8: the tiles of the second
cell are 8 10 12 14 and 9 11 13 15.

With an index (the caller gave ``positions``, ranks for membership) this arithmetic does not hold: the tables
of index.py list rows and columns, and the positions of columns below are slots in these tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Extent(NamedTuple):
    """The numbers of a call: a kernel's arguments of these names. No kernel is specialised on them."""

    num_cells: int
    """Cells; with an index: tiles."""
    cell: int
    """Length of a cell."""
    cell_rows: int
    """The most rows that a cell has."""
    base: int
    """Position where the first cell begins: that of row 0, or an earlier one."""
    num_rows: int
    num_columns: int
    row_origin: int
    """Position of row 0."""
    column_origin: int
    first_head: int
    """Global index of query head 0."""
    group: int
    """Query heads per key/value head."""
    per_item: int
    """1 if each batch element has its own tables, else 0."""


class Times(NamedTuple):
    """What causality compares, if not positions: int64, one number for each row and each column."""

    rows: Any
    columns: Any


RUNTIME = (*Extent._fields, "scale")


def batch_strides(*tensors: str) -> list[str]:
    """Argument names of the batch strides of ``[b, ...]`` tensors, which grow with the length."""
    return [f"{name}_batch" for name in tensors]


def head_strides(*tensors: str) -> list[str]:
    """Argument names of the first two strides of ``[b, h, rows]`` tensors, which grow with the length."""
    return [f"{name}_{dimension}" for name in tensors for dimension in ("batch", "head")]


@triton.jit
def program_of(index, extent, VISITS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's tile, batch element, head and set of tables; the grid is (tiles * b, heads)."""
    tiles = extent.num_cells
    if index is None:
        classes = tl.minimum(VISITS.classes, extent.cell_rows)
        tiles = tiles * classes * tl.cdiv(tl.cdiv(extent.cell_rows, VISITS.classes), BLOCK)
    batch = tl.program_id(0) // tiles
    return tl.program_id(0) % tiles, batch, tl.program_id(1), (batch * extent.per_item).to(tl.int64)


@triton.jit
def tile_of(tile, item, index, times, extent, VISITS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile's rows, their times and which of them exist, ``[BLOCK]``; its lowest and highest position.

    With an index, which needs no positions, the last two are 0.
    """
    if index is not None:
        entry = index.tiles + (item * extent.num_cells + tile) * 2
        exist = tl.arange(0, BLOCK) < tl.load(entry + 1)
        slots = item * extent.num_rows + tl.load(entry) + tl.arange(0, BLOCK)
        rows = tl.load(index.rows + slots, mask=exist, other=0)
        return rows, rows, exist, 0, 0
    else:
        classes = tl.minimum(VISITS.classes, extent.cell_rows)
        tiles_per_class = tl.cdiv(tl.cdiv(extent.cell_rows, VISITS.classes), BLOCK)
        begin = extent.base + tile // (tiles_per_class * classes) * extent.cell
        end = tl.minimum(begin + extent.cell, extent.row_origin + extent.num_rows)
        # Not before row 0: cells are cut where segments end between two rows, so before row 0 a segment may
        # end inside a cell.
        lowest = tl.maximum(begin, extent.row_origin) + tile // tiles_per_class % classes
        lowest += tile % tiles_per_class * (BLOCK * VISITS.classes)
        highest = tl.minimum(lowest + (BLOCK - 1) * VISITS.classes, end - 1)
        positions = lowest + tl.arange(0, BLOCK) * VISITS.classes
        exist = positions < end
        rows = positions - extent.row_origin
        if times is not None:
            return rows, tl.load(times.rows + rows, mask=exist, other=0), exist, lowest, highest
        else:
            return rows, positions, exist, lowest, highest


@triton.jit
def served_by(lowest, highest, head, index, VISITS: tl.constexpr):
    """The branches that serve a tile for a head (global index), one bit each; 0 with an index."""
    served = 0
    if index is None:
        for k in tl.static_range(len(VISITS.rates)):
            is_served = (lowest % VISITS.segments[k]) % VISITS.rates[k] == head % VISITS.rates[k]
            served = served | (is_served.to(tl.int32) << k)
        served = tl.where(highest >= lowest, served, 0)
    return served


@triton.jit
def run_of(
    run, tile, item, lowest, served, head, low, high, index, extent, VISITS: tl.constexpr, ONCE: tl.constexpr
):
    """Runs 2k and 2k + 1: the columns in [low, high) that a tile visits through branch k. With ONCE these
    are the columns before and after the segment of its absorbers, else run 2k has all and 2k + 1 none.

    Branches (8, 1), which absorbs (16, 2), 16 columns, the tile of lowest position 8, head 0, ONCE: run 0 is
    8 9 ... 15, run 2 is 0 2 4 6, runs 1 and 3 are empty.

    Returns the first position, the step to the next, the number of columns, the number of their phases, and
    the absorbed branches (bits) that offer some of them too. With an index run k is all of branch k.
    """
    if index is not None:
        return indexed_run(run, tile, item, head, index, extent, VISITS)
    else:
        return strided_run(run, lowest, served, low, high, VISITS, ONCE)


@triton.jit
def indexed_run(branch, tile, item, head, index, extent, VISITS: tl.constexpr):
    entry = index.runs + ((item * extent.num_cells + tile) * len(VISITS.rates) + branch) * 3
    first, count, offset = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    rate = 1
    for k in tl.static_range(len(VISITS.rates)):
        rate = tl.where(branch == k, VISITS.rates[k], rate)
    return first, 1, tl.where(head % rate == offset, count, 0), 1, 0


@triton.jit
def strided_run(run, lowest, served, low, high, VISITS: tl.constexpr, ONCE: tl.constexpr):
    branch = run // 2
    begin, end, step, phases, absorbed, absorbers = 0, 0, 1, 1, 0, 0
    for k in tl.static_range(len(VISITS.rates)):
        chosen = branch == k
        begin = tl.where(chosen, lowest - lowest % VISITS.segments[k], begin)
        end = tl.where(chosen, lowest - lowest % VISITS.segments[k] + VISITS.segments[k], end)
        step = tl.where(chosen, VISITS.rates[k], step)
        if ONCE:
            phases = tl.where(chosen, VISITS.phases[k], phases)
            absorbed = tl.where(chosen, VISITS.absorbed[k] & served, absorbed)
            absorbers = tl.where(chosen, VISITS.absorbers[k] & served, absorbers)
    # Absorbers form a chain in which each segment contains the one before: the last contains all columns
    # that absorbers visit.
    hole_begin, hole_end = high, high
    if ONCE:
        phases = tl.where(absorbed == 0, 1, phases)
        for a in tl.static_range(len(VISITS.rates) - 1):
            absorbs = (absorbers >> a) & 1 == 1
            hole_begin = tl.where(absorbs, lowest - lowest % VISITS.segments[a], hole_begin)
            hole_end = tl.where(absorbs, lowest - lowest % VISITS.segments[a] + VISITS.segments[a], hole_end)
    low, high = tl.maximum(low, begin), tl.minimum(high, end)
    if run % 2 == 0:
        high = tl.minimum(high, hole_begin)
    else:
        low = tl.maximum(low, hole_end)
    # The first position from low on that is congruent to lowest; % takes the sign of a negative dividend.
    first = low + ((lowest - low) % step + step) % step
    count = tl.maximum((high - first + step - 1) // step, 0) * ((served >> branch) & 1)
    return first, step, count, phases, absorbed


@triton.jit
def block_of(
    block,
    lowest,
    first,
    step,
    count,
    phases,
    absorbed,
    VISITS: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a run: positions ``[BLOCK]``, which of them exist, and log2 of how often they are offered.

    Blocks go round the phases, so that all columns of a block are offered equally often. In run 0 of the
    example of :func:`run_of` block 0 has 8 10 12 14, offered by both branches (log2 is 1), block 1 has
    9 11 13 15, offered once (0).
    """
    phase = block % phases
    within = (block // phases * BLOCK + tl.arange(0, BLOCK)) * phases + phase
    bias = 0.0
    if ONCE:
        offered = 1
        for c in tl.static_range(1, len(VISITS.rates)):
            also = (first + phase * step - lowest) % VISITS.rates[c] == 0
            offered += (absorbed >> c) & also.to(tl.int32)
        bias = tl.log2(offered.to(tl.float32))
    return first + within * step, within < count, bias


@triton.jit
def columns_of(positions, exist, run, item, index, times, extent, VISITS: tl.constexpr):
    """The columns at positions of a run, and their times."""
    if index is not None:
        start = (item * len(VISITS.rates) + run) * extent.num_columns
        columns = tl.load(index.columns + start + positions, mask=exist, other=0)
        return columns, columns
    else:
        columns = positions - extent.column_origin
        if times is not None:
            return columns, tl.load(times.columns + columns, mask=exist, other=0)
        else:
            return columns, positions


@triton.jit
def pointers_to(start, rows, strides, BLOCK_D: tl.constexpr):
    """Pointers ``[rows, BLOCK_D]`` into a matrix whose last dimension is contiguous."""
    return start + rows.to(tl.int64)[:, None] * strides[0] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_matrix(pointers, exist, ALL: tl.constexpr, HEAD_DIM: tl.constexpr, UPCAST: tl.constexpr):
    """The numbers at pointers ``[rows, BLOCK_D]``; 0 in rows that do not exist and from HEAD_DIM on.

    ``ALL``: all rows exist, no mask for them is needed.
    """
    mask = exist[:, None]
    if pointers.shape[1] != HEAD_DIM:
        mask = mask & (tl.arange(0, pointers.shape[1]) < HEAD_DIM)[None, :]
    if ALL and pointers.shape[1] == HEAD_DIM:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=mask, other=0.0)
    if UPCAST:  # the interpreter's dot misreads bfloat16
        values = values.to(tl.float32)
    return values


@triton.jit
def store_matrix(pointers, values, exist, HEAD_DIM: tl.constexpr):
    """Write the rows that exist, up to HEAD_DIM."""
    mask = exist[:, None] & (tl.arange(0, pointers.shape[1]) < HEAD_DIM)[None, :]
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def start_of(tensor, batch, head, stride_batch, strides, ALIGNED: tl.constexpr):
    """Pointer to the first row of a batch element's head."""
    offset = batch.to(tl.int64) * stride_batch + head.to(tl.int64) * strides[1]
    if ALIGNED:  # to 16 elements, which loads of 16 bytes need
        offset = tl.multiple_of(offset, 16)
    return tensor + offset
