"""The forward: one pass over each query's keys, whichever branches offer them, in one online softmax.

FlashAttention-2 (arXiv:2307.08691, algorithm 1), its scores in base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .walk import (
    RUNTIME,
    Extent,
    batch_strides,
    block_of,
    columns_of,
    head_strides,
    load_matrix,
    pointers_to,
    program_of,
    run_of,
    served_by,
    start_of,
    store_matrix,
    tile_of,
)

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))


@triton.jit(
    do_not_specialize=[*RUNTIME, *batch_strides("query", "key", "value", "out"), *head_strides("lse")]
)
def forward_kernel(
    query,  # [b, rows, h, d]
    key,  # [b, columns, g, d]
    value,  # [b, columns, g, d]
    out,  # [b, rows, h, d]
    lse,  # [b, h, rows], float32
    padding,  # [b, columns], uint8, 1 = ignore; or None
    index,  # Tables or None
    times,  # Times or None
    strides,  # of rows and heads: query, key, value, out
    query_batch: tl.int64,
    key_batch: tl.int64,
    value_batch: tl.int64,
    out_batch: tl.int64,
    lse_batch: tl.int64,
    lse_head: tl.int64,
    lse_row,
    num_cells: tl.int32,
    cell: tl.int32,
    cell_rows: tl.int32,
    base: tl.int32,
    num_rows: tl.int32,
    num_columns: tl.int32,
    row_origin: tl.int32,
    column_origin: tl.int32,
    first_head: tl.int32,
    group: tl.int32,
    per_item: tl.int32,
    scale: tl.float32,
    VISITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    CONTINUES: tl.constexpr,  # out and lse already hold the result for other keys
    ALIGNED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One tile of queries of one head: grid (tiles * b, h)."""
    extent = Extent(
        num_cells,
        cell,
        cell_rows,
        base,
        num_rows,
        num_columns,
        row_origin,
        column_origin,
        first_head,
        group,
        per_item,
    )
    tile, batch, head, item = program_of(index, extent, VISITS, BLOCK_ROWS)
    # The columns of a run come in the order of their times, so causality is one bound on the run.
    IN_ORDER: tl.constexpr = index is None and times is None

    rows, row_times, exist, lowest, highest = tile_of(tile, item, index, times, extent, VISITS, BLOCK_ROWS)
    global_head = extent.first_head + head
    served = served_by(lowest, highest, global_head, index, VISITS)
    query = start_of(query, batch, head, query_batch, strides[0], ALIGNED)
    key = start_of(key, batch, head // extent.group, key_batch, strides[1], ALIGNED)
    value = start_of(value, batch, head // extent.group, value_batch, strides[2], ALIGNED)
    out = start_of(out, batch, head, out_batch, strides[3], ALIGNED)
    lse += batch.to(tl.int64) * lse_batch + head.to(tl.int64) * lse_head
    lse += rows.to(tl.int64) * lse_row

    query = pointers_to(query, rows, strides[0], BLOCK_D)
    out = pointers_to(out, rows, strides[3], BLOCK_D)
    q = load_matrix(query, exist, False, HEAD_DIM, UPCAST)
    if CONTINUES:
        top = tl.load(lse, mask=exist, other=-INF) * LOG2E
        total = tl.where(top > -INF, 1.0, 0.0)
        sums = load_matrix(out, exist, False, HEAD_DIM, False)
    else:
        top = tl.full((BLOCK_ROWS,), -INF, tl.float32)
        total = tl.zeros((BLOCK_ROWS,), tl.float32)
        sums = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)

    low, high = extent.column_origin, extent.column_origin + extent.num_columns
    if CAUSAL and IN_ORDER:
        high = tl.minimum(high, highest + 1)
    for run in range(len(VISITS.rates) * (1 if index is not None else 2)):
        first, step, count, phases, absorbed = run_of(
            run, tile, item, lowest, served, global_head, low, high, index, extent, VISITS, ONCE
        )
        seen_by_all = count  # the columns up to lowest: (lowest - first) // step + 1
        if CAUSAL:
            seen_by_all = tl.minimum(count, tl.maximum(lowest - first + step, 0) // step) if IN_ORDER else 0
        full_blocks = seen_by_all // (phases * BLOCK_COLUMNS) * phases
        blocks = tl.cdiv(count, phases * BLOCK_COLUMNS) * phases
        for MASKED in tl.static_range(2):  # first the blocks that need no mask
            begin, end = (full_blocks, blocks) if MASKED else (0, full_blocks)
            for block in tl.range(begin, end, num_stages=1 if MASKED else None):
                positions, there, bias = block_of(
                    block, lowest, first, step, count, phases, absorbed, VISITS, ONCE, BLOCK_COLUMNS
                )
                columns, column_times = columns_of(positions, there, run, item, index, times, extent, VISITS)
                if padding is not None:
                    ignored = padding + batch.to(tl.int64) * extent.num_columns + columns
                    there = there & (tl.load(ignored, mask=there, other=1) == 0)
                ALL: tl.constexpr = not MASKED and padding is None
                k = pointers_to(key, columns, strides[1], BLOCK_D)
                k = load_matrix(k, there, ALL, HEAD_DIM, UPCAST)
                v = pointers_to(value, columns, strides[2], BLOCK_D)
                v = load_matrix(v, there, ALL, HEAD_DIM, UPCAST)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
                if not ALL:
                    scores += tl.where(there, bias, -INF)[None, :]
                    if CAUSAL and MASKED:
                        scores = tl.where(row_times[:, None] >= column_times[None, :], scores, -INF)
                    new_top = tl.maximum(top, tl.max(scores, 1))
                    shift = tl.where(new_top == -INF, 0.0, new_top)
                    weights = tl.exp2(scores - shift[:, None])
                else:  # bias, one number for the block, is added to the maximum and not to each score
                    new_top = tl.maximum(top, tl.max(scores, 1) + bias)
                    shift = new_top
                    weights = tl.exp2(scores - (shift - bias)[:, None])
                fading = tl.exp2(top - shift)
                total = total * fading + tl.sum(weights, 1)
                sums = tl.dot(weights.to(v.dtype), v, sums * fading[:, None], input_precision=PRECISION)
                top = new_top

    divisor = tl.where(total == 0, 1.0, total)
    store_matrix(out, sums / divisor[:, None], exist, HEAD_DIM)
    tl.store(lse, tl.where(total == 0, -INF, (top + tl.log2(divisor)) * LN2), mask=exist)
