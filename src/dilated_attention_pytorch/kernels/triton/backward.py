"""The backward: a kernel for the gradient of queries and one for that of keys and values. No atomics.

FlashAttention-2 (arXiv:2307.08691, algorithm 2). Both take the lse and the output of the softmax over all
keys, so what they compute from some of the keys is exactly those keys' part of the gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import INF, LOG2E
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

# In delta: this query has no incoming gradient. A row sum as large as this would be useless anyway.
IDLE = tl.constexpr(float("inf"))


@triton.jit(
    do_not_specialize=[
        *RUNTIME,
        *batch_strides("query", "key", "value", "out", "grad_out", "grad_query"),
        *head_strides("lse", "delta"),
    ]
)
def query_gradient_kernel(
    query,  # [b, rows, h, d]
    key,  # [b, columns, g, d]
    value,  # [b, columns, g, d]
    out,  # [b, rows, h, d]
    grad_out,  # [b, rows, h, d]
    grad_query,  # [b, rows, h, d], written
    lse,  # [b, h, rows], float32
    delta,  # [b, h, rows], float32, written: rowsum(grad_out * out); with padding IDLE where grad_out is 0
    padding,  # [b, columns], uint8, 1 = ignore; or None
    index,  # Tables or None
    times,  # Times or None
    strides,  # of rows and heads: the first six
    query_batch: tl.int64,
    key_batch: tl.int64,
    value_batch: tl.int64,
    out_batch: tl.int64,
    grad_out_batch: tl.int64,
    grad_query_batch: tl.int64,
    lse_batch: tl.int64,
    lse_head: tl.int64,
    lse_row,
    delta_batch: tl.int64,
    delta_head: tl.int64,
    delta_row,
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
    CONTINUES: tl.constexpr,  # add to what grad_query holds
    ALIGNED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One tile of queries of one head: grid (tiles * b, h). It walks as the forward does."""
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
    IN_ORDER: tl.constexpr = index is None and times is None

    rows, row_times, exist, lowest, highest = tile_of(tile, item, index, times, extent, VISITS, BLOCK_ROWS)
    global_head = extent.first_head + head
    served = served_by(lowest, highest, global_head, index, VISITS)
    query = start_of(query, batch, head, query_batch, strides[0], ALIGNED)
    key = start_of(key, batch, head // extent.group, key_batch, strides[1], ALIGNED)
    value = start_of(value, batch, head // extent.group, value_batch, strides[2], ALIGNED)
    out = start_of(out, batch, head, out_batch, strides[3], ALIGNED)
    grad_out = start_of(grad_out, batch, head, grad_out_batch, strides[4], ALIGNED)
    grad_query = start_of(grad_query, batch, head, grad_query_batch, strides[5], ALIGNED)
    lse += batch.to(tl.int64) * lse_batch + head.to(tl.int64) * lse_head
    delta += batch.to(tl.int64) * delta_batch + head.to(tl.int64) * delta_head

    query = pointers_to(query, rows, strides[0], BLOCK_D)
    out = pointers_to(out, rows, strides[3], BLOCK_D)
    grad_out = pointers_to(grad_out, rows, strides[4], BLOCK_D)
    q = load_matrix(query, exist, False, HEAD_DIM, UPCAST)
    o = load_matrix(out, exist, False, HEAD_DIM, UPCAST)
    grad = load_matrix(grad_out, exist, False, HEAD_DIM, UPCAST)
    rowsum = tl.sum(grad.to(tl.float32) * o.to(tl.float32), 1)
    top = tl.load(lse + rows.to(tl.int64) * lse_row, mask=exist, other=INF) * LOG2E
    top = tl.where(top == -INF, INF, top)  # without keys: all weights 0
    if padding is None:
        tl.store(delta + rows.to(tl.int64) * delta_row, rowsum, mask=exist)
    else:
        # A padded query may hold anything; without an incoming gradient it must add nothing.
        idle = tl.sum((grad != 0).to(tl.int32), 1) == 0
        tl.store(delta + rows.to(tl.int64) * delta_row, tl.where(idle, IDLE, rowsum), mask=exist)
        q = tl.where(idle[:, None], 0.0, q)
        rowsum = tl.where(idle, 0.0, rowsum)
        top = tl.where(idle, INF, top)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)

    low, high = extent.column_origin, extent.column_origin + extent.num_columns
    if CAUSAL and IN_ORDER:
        high = tl.minimum(high, highest + 1)
    for run in range(len(VISITS.rates) * (1 if index is not None else 2)):
        first, step, count, phases, absorbed = run_of(
            run, tile, item, lowest, served, global_head, low, high, index, extent, VISITS, ONCE
        )
        seen_by_all = count
        if CAUSAL:
            seen_by_all = tl.minimum(count, tl.maximum(lowest - first + step, 0) // step) if IN_ORDER else 0
        full_blocks = seen_by_all // (phases * BLOCK_COLUMNS) * phases
        blocks = tl.cdiv(count, phases * BLOCK_COLUMNS) * phases
        for MASKED in tl.static_range(2):
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
                    scores = tl.where(there[None, :], scores, -INF)
                    if CAUSAL and MASKED:
                        scores = tl.where(row_times[:, None] >= column_times[None, :], scores, -INF)
                weights = tl.exp2(scores - (top - bias)[:, None])
                grad_weights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
                grad_scores = weights * (grad_weights - rowsum[:, None])
                sums = tl.dot(grad_scores.to(k.dtype), k, sums, input_precision=PRECISION)
    sums *= scale
    grad_query = pointers_to(grad_query, rows, strides[5], BLOCK_D)
    if CONTINUES:
        sums += load_matrix(grad_query, exist, False, HEAD_DIM, False)
    store_matrix(grad_query, sums, exist, HEAD_DIM)


@triton.jit(
    do_not_specialize=[
        *RUNTIME,
        *batch_strides("query", "key", "value", "grad_out", "grad_key", "grad_value"),
        *head_strides("lse", "delta"),
    ]
)
def key_gradient_kernel(
    query,  # [b, columns, h, d]
    key,  # [b, rows, g, d]
    value,  # [b, rows, g, d]
    grad_out,  # [b, columns, h, d]
    grad_key,  # [b, rows, g, d], written
    grad_value,  # [b, rows, g, d], written
    lse,  # [b, h, columns], float32
    delta,  # [b, h, columns], float32
    padding,  # [b, rows], uint8, 1 = ignore; or None
    index,  # Tables or None
    times,  # Times or None
    strides,  # of rows and heads: the first six
    query_batch: tl.int64,
    key_batch: tl.int64,
    value_batch: tl.int64,
    grad_out_batch: tl.int64,
    grad_key_batch: tl.int64,
    grad_value_batch: tl.int64,
    lse_batch: tl.int64,
    lse_head: tl.int64,
    lse_row,
    delta_batch: tl.int64,
    delta_head: tl.int64,
    delta_row,
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
    ALIGNED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One tile of keys of one key/value head: grid (tiles * b, g). Rows are keys here, columns queries."""
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
    tile, batch, kv_head, item = program_of(index, extent, VISITS, BLOCK_ROWS)
    IN_ORDER: tl.constexpr = index is None and times is None

    rows, row_times, exist, lowest, highest = tile_of(tile, item, index, times, extent, VISITS, BLOCK_ROWS)
    key = start_of(key, batch, kv_head, key_batch, strides[1], ALIGNED)
    value = start_of(value, batch, kv_head, value_batch, strides[2], ALIGNED)
    grad_key = start_of(grad_key, batch, kv_head, grad_key_batch, strides[4], ALIGNED)
    grad_value = start_of(grad_value, batch, kv_head, grad_value_batch, strides[5], ALIGNED)
    key = pointers_to(key, rows, strides[1], BLOCK_D)
    value = pointers_to(value, rows, strides[2], BLOCK_D)
    seen = exist
    if padding is not None:
        ignored = padding + batch.to(tl.int64) * extent.num_rows + rows
        seen = exist & (tl.load(ignored, mask=exist, other=1) == 0)
    k = load_matrix(key, seen, False, HEAD_DIM, UPCAST)
    v = load_matrix(value, seen, False, HEAD_DIM, UPCAST)
    key_sums = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    value_sums = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)

    low, high = extent.column_origin, extent.column_origin + extent.num_columns
    if CAUSAL and IN_ORDER:
        low = tl.maximum(low, lowest)
    for member in range(extent.group):
        head = kv_head * extent.group + member
        global_head = extent.first_head + head
        served = served_by(lowest, highest, global_head, index, VISITS)
        q_start = start_of(query, batch, head, query_batch, strides[0], ALIGNED)
        grad_start = start_of(grad_out, batch, head, grad_out_batch, strides[3], ALIGNED)
        lse_start = lse + batch.to(tl.int64) * lse_batch + head.to(tl.int64) * lse_head
        delta_start = delta + batch.to(tl.int64) * delta_batch + head.to(tl.int64) * delta_head
        for run in range(len(VISITS.rates) * (1 if index is not None else 2)):
            first, step, count, phases, absorbed = run_of(
                run, tile, item, lowest, served, global_head, low, high, index, extent, VISITS, ONCE
            )
            blocks = tl.cdiv(count, phases * BLOCK_COLUMNS) * phases
            # Blocks [0, start), which begin before the last key, and [last, blocks), the ragged end, need a
            # mask. One loop takes both: start = 1, last = 5, blocks = 6 makes numbers 0 and 1 blocks 0 and 5.
            last = count // (phases * BLOCK_COLUMNS) * phases
            start = 0
            if CAUSAL:
                not_after_all = tl.maximum(highest - first + step - 1, 0) // step if IN_ORDER else count
                start = tl.minimum(tl.cdiv(not_after_all, phases * BLOCK_COLUMNS) * phases, blocks)
                last = tl.maximum(start, last)
            for MASKED in tl.static_range(2):
                begin, end = (0, start + blocks - last) if MASKED else (start, last)
                for number in tl.range(begin, end, num_stages=1 if MASKED else None):
                    block = number
                    if MASKED:
                        block = tl.where(number < start, number, number - start + last)
                    positions, there, bias = block_of(
                        block, lowest, first, step, count, phases, absorbed, VISITS, ONCE, BLOCK_COLUMNS
                    )
                    columns, column_times = columns_of(
                        positions, there, run, item, index, times, extent, VISITS
                    )
                    offsets = columns.to(tl.int64)
                    rowsum = tl.load(delta_start + offsets * delta_row, mask=there, other=0.0)
                    if padding is not None:
                        there = there & (rowsum != IDLE)
                        rowsum = tl.where(there, rowsum, 0.0)
                    ALL: tl.constexpr = not MASKED and padding is None
                    q = pointers_to(q_start, columns, strides[0], BLOCK_D)
                    q = load_matrix(q, there, ALL, HEAD_DIM, UPCAST)
                    grad = pointers_to(grad_start, columns, strides[3], BLOCK_D)
                    grad = load_matrix(grad, there, ALL, HEAD_DIM, UPCAST)
                    top = tl.load(lse_start + offsets * lse_row, mask=there, other=INF) * LOG2E
                    top = tl.where(top == -INF, INF, top)  # without keys: all weights 0
                    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)
                    weights = tl.exp2(scores - (top - bias)[None, :])
                    if CAUSAL and MASKED:
                        weights = tl.where(row_times[:, None] <= column_times[None, :], weights, 0.0)
                    value_sums = tl.dot(weights.to(grad.dtype), grad, value_sums, input_precision=PRECISION)
                    grad_weights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
                    grad_scores = weights * (grad_weights - rowsum[None, :])
                    key_sums = tl.dot(grad_scores.to(q.dtype), q, key_sums, input_precision=PRECISION)
    if padding is not None:
        key_sums = tl.where(seen[:, None], key_sums, 0.0)
        value_sums = tl.where(seen[:, None], value_sums, 0.0)
    grad_key = pointers_to(grad_key, rows, strides[4], BLOCK_D)
    store_matrix(grad_key, key_sums * scale, exist, HEAD_DIM)
    grad_value = pointers_to(grad_value, rows, strides[5], BLOCK_D)
    store_matrix(grad_value, value_sums, exist, HEAD_DIM)
