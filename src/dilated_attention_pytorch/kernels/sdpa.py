"""Dilated attention from PyTorch's fused kernels: one call per tile of rows, merged as it goes.

Letters: b batch, n sequence, h query heads, g key/value heads, d head dimension; w, r, o segment length,
dilation rate and offset of a branch. A tile is what one fused call computes: equally many rows of some
segments, for heads that share an offset or, where it can be done, for consecutive heads at all offsets: every
call and every merge starts all threads, so few of them matter most where other work shares the cores.

A branch with r = 1 goes first, reads its inputs in place, and its result becomes the accumulator. Tiles of
r > 1 copy their rows: rows that lie r * h * d apart cost the kernel more than the copy does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import lcm

import torch
from torch import Tensor

from ..core.pattern import num_rows
from ..core.validation import check_position_values
from .fused import fused_backward, fused_forward
from .problem import Heads, Problem, Tile, accumulation_dtype, check_scores, head_groups, merge_rows

# What one tile copies of each input, or one segment if that is more: enough to keep the cores busy and the
# calls few, small beside the output. More per launch on a GPU is a guess, not yet measured.
_TILE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}

# Sequences in one call: a CUDA grid has no more in that dimension.
_MAX_BATCH = 65535


def sdpa_forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Map query ``[b, n, h, d]``, key, value ``[b, n, g, d]`` to out ``[b, n, h, d]``, lse ``[b, h, n]``.

    lse is in the accumulation dtype; a (query, head) that no branch serves gives 0 and -inf.
    """
    if problem.positions is not None:
        check_position_values(problem.positions)
    accumulation = accumulation_dtype(query)
    if query.dtype == accumulation or query.is_cuda:
        out, lse = partial_forward(query, key, value, problem)
        return out.to(query.dtype), lse
    # In parts of a few heads and the rows between common ends of segments, so that no float32 tensor is
    # whole. Without matrix instructions for 16 bits the CPU kernel is no faster in them than in float32.
    fast = query.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    dtype = query.dtype if fast else accumulation
    batch, seq, num_heads, _ = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(batch, num_heads, seq, dtype=accumulation)
    for rows, heads in _parts(query, key, problem, dtype):
        out[:, rows, heads.query], lse[:, heads.query, rows] = partial_forward(
            query[:, rows, heads.query].to(dtype),
            key[:, rows, heads.kv].to(dtype),
            value[:, rows, heads.kv].to(dtype),
            _part_of(problem, rows, heads),
        )
    return out, lse


def sdpa_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given the merged ``out`` and ``lse`` of :func:`sdpa_forward`.

    With those, each branch's own backward yields its part of the exact gradient of the whole.

    Raises:
        ValueError: as :func:`check_scores` does.
    """
    check_scores(grad_out, lse)
    accumulation = lse.dtype
    if query.dtype == accumulation or query.is_cuda:
        grad_query, grad_key, grad_value = partial_backward(grad_out, query, key, value, out, lse, problem)
        return grad_query.to(query.dtype), grad_key.to(query.dtype), grad_value.to(query.dtype)
    grad_query, grad_key, grad_value = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
    )
    # In float32: in 16 bits the CPU kernel sums the gradients of keys and values in 16 bits over all queries,
    # an error that grows with the segment, and is ten times slower without matrix instructions for them.
    for rows, heads in _parts(query, key, problem, accumulation):
        grad_query[:, rows, heads.query], grad_key[:, rows, heads.kv], grad_value[:, rows, heads.kv] = (
            partial_backward(
                grad_out[:, rows, heads.query].to(accumulation),
                query[:, rows, heads.query].to(accumulation),
                key[:, rows, heads.kv].to(accumulation),
                value[:, rows, heads.kv].to(accumulation),
                out[:, rows, heads.query].to(accumulation),
                lse[:, heads.query, rows],
                _part_of(problem, rows, heads),
            )
        )
    return grad_query, grad_key, grad_value


def partial_forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Map to out ``[b, n, h, d]`` and lse ``[b, h, n]``, both in the accumulation dtype.

    On a CPU query must be float32 or float64. To take more keys, :func:`merge_rows`.
    """
    batch, seq, heads, _ = query.shape
    accumulation = accumulation_dtype(query)
    out = lse = None
    for first, tile in _tiles(query, key, problem):
        rows_out, rows_lse = fused_forward(
            tile.rows_for_kernel(query, tile.heads.query),
            tile.rows_for_kernel(key, tile.heads.kv),
            tile.rows_for_kernel(value, tile.heads.kv),
            is_causal=problem.is_causal,
            scale=problem.scale,
            ignored=tile.ignored_keys(problem.padding),
        )
        rows_out, rows_lse = (tile.rows_from_kernel(x).to(accumulation) for x in (rows_out, rows_lse))
        if first and _covers(tile, query):
            out, lse = rows_out.reshape(query.shape).contiguous(), rows_lse.reshape(batch, seq, heads)
            continue
        if out is None or lse is None:
            out = query.new_zeros(query.shape, dtype=accumulation)
            lse = query.new_full((batch, seq, heads), float("-inf"), dtype=accumulation)
        if first:
            tile.put(out, tile.heads.query, rows_out)
            tile.put(lse, tile.heads.query, rows_lse)
        else:
            merge_rows(tile, out, lse, rows_out, rows_lse)
        del rows_out, rows_lse  # before the next tile allocates its own
    if out is None or lse is None:  # nothing to attend to at all
        out = query.new_zeros(query.shape, dtype=accumulation)
        lse = query.new_full((batch, seq, heads), float("-inf"), dtype=accumulation)
    return out, lse.transpose(1, 2).contiguous()


def partial_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """These keys' part of the gradients, in the accumulation dtype; ``out`` and ``lse`` are merged."""
    lse = lse.transpose(1, 2)
    sources = (query, key, value)
    grads: list[Tensor] = []
    for first, tile in _tiles(query, key, problem):
        q_heads, kv_heads = tile.heads.query, tile.heads.kv
        kernel_grads = fused_backward(
            tile.rows_for_kernel(grad_out, q_heads),
            tile.rows_for_kernel(query, q_heads),
            tile.rows_for_kernel(key, kv_heads),
            tile.rows_for_kernel(value, kv_heads),
            tile.rows_for_kernel(out, q_heads),
            tile.rows_for_kernel(lse[..., None], q_heads)[..., 0],
            is_causal=problem.is_causal,
            scale=problem.scale,
            ignored=tile.ignored_keys(problem.padding),
        )
        rows_grads = [tile.rows_from_kernel(x).to(lse.dtype) for x in kernel_grads]
        if first and _covers(tile, query):
            grads = [x.reshape(y.shape).contiguous() for x, y in zip(rows_grads, sources, strict=True)]
            continue
        if not grads:
            grads = [x.new_zeros(x.shape, dtype=lse.dtype) for x in sources]
        for grad, heads, rows in zip(grads, (q_heads, kv_heads, kv_heads), rows_grads, strict=True):
            tile.put(grad, heads, rows if first else tile.take(grad, heads).add_(rows))
    if not grads:  # nothing was served
        grads = [x.new_zeros(x.shape, dtype=lse.dtype) for x in sources]
    return grads[0], grads[1], grads[2]


def _covers(tile: Tile, query: Tensor) -> bool:
    """Whether the tile is every row of every head, in the order of the tensor."""
    batch, seq, heads, _ = query.shape
    whole = tile.count * tile.length == seq and tile.batch == slice(0, batch)
    return whole and tile.rate == 1 and len(range(*tile.heads.query.indices(heads))) == heads


def _tiles(query: Tensor, key: Tensor, problem: Problem) -> Iterator[tuple[bool, Tile]]:
    """Every tile of every branch; True marks those of a leading branch that serves each (row, head) once."""
    batch, seq, heads, _ = query.shape
    if not query.numel():
        return
    group = heads // key.shape[2]
    # A branch with r = 1 serves every (row, head) exactly once; best if its segments also divide n.
    branches = sorted(problem.branches, key=lambda branch: (branch[1] > 1, seq % branch[0] != 0))
    for index, (w, r) in enumerate(branches):
        first = index == 0 and r == 1
        if problem.positions is not None:
            tiles = _indexed_tiles(query, problem, problem.positions, w, r, group)
        elif first and seq % w == 0 == problem.origin % w and batch * seq // w <= _MAX_BATCH:
            every = Heads(slice(0, heads), slice(0, heads // group))
            tiles = iter([Tile(slice(0, batch), every, count=seq // w, length=w)])
        else:
            tiles = _strided_tiles(query, problem, w, r, group)
        for tile in tiles:
            yield first, tile


def _strided_tiles(query: Tensor, problem: Problem, w: int, r: int, group: int) -> Iterator[Tile]:
    batch, seq, heads, _ = query.shape
    # The first segment may have begun before row 0, the last may end early.
    begun = problem.origin % w
    head = min(-begun % w, seq)
    full, tail = divmod(seq - head, w)
    parts = ((0, 1, head, begun), (head, full, w, 0), (head + full * w, 1, tail, 0))
    for start, count, length, before in parts:
        if not length or not count:
            continue
        # A mask of keys cannot differ between heads.
        if group == 1 and problem.padding is None and length % r == 0 == before % r:
            # As many as share an offset, or more: of one head, threads get unequal parts of a triangle.
            most = max(1, heads // r, _rows_of_tile(query, query.dtype) // (length // r))
            chosen = _head_cycles(problem.first_head, heads, r, most)
        else:
            chosen = ((offset, 1, some) for offset, some in _offsets(problem, heads, r, group))
        for offset, cycle, selection in chosen:
            first = (offset - before) % r
            rows = num_rows(length, r, first)
            if not rows:
                continue
            sequences = _batch_of(query, rows, selection, cycle)
            items = min(batch, sequences)
            step = max(1, sequences // items)
            for item in range(0, batch, items):
                elements = slice(item, min(item + items, batch))
                for segment in range(0, count, step):
                    part = min(step, count - segment)
                    begin = start + segment * length
                    yield Tile(elements, selection, begin, part, length, first, r, cycle=cycle)


def _offsets(problem: Problem, heads: int, r: int, group: int) -> Iterator[tuple[int, Heads]]:
    """Every offset with the heads that share it."""
    for offset in sorted({(problem.first_head + head) % r for head in range(min(r, heads))}):
        for selection in head_groups(offset, r, heads, group, problem.first_head):
            yield offset, selection


def _head_cycles(first_head: int, heads: int, r: int, most: int) -> Iterator[tuple[int, int, Heads]]:
    """Heads in a row, at most ``most``: cycles through all r offsets, or a part of one cycle.

    Yields:
        the first one's offset, the length of a cycle, the heads.
    """
    head = 0
    while head < heads:
        offset = (first_head + head) % r
        number = min(most, heads - head)
        cycle = min(number, r - offset)
        number -= number % r if cycle == r else number - cycle
        some = slice(head, head + number)
        yield offset, cycle, Heads(some, some)
        head += number


def _indexed_tiles(
    query: Tensor, problem: Problem, positions: Tensor, w: int, r: int, group: int
) -> Iterator[Tile]:
    chosen = _offsets(problem, query.shape[2], r, group)
    for (offset, selection), (item, ranks) in product(chosen, enumerate(positions)):
        members = ((ranks % w) % r == offset).nonzero()[:, 0]
        segment = ranks[members] // w
        # Stable: inside a segment the rows keep the order of the tensor, so causality stays a triangle.
        members = members[segment.argsort(stable=True)]
        sizes = segment.unique(return_counts=True)[1]
        starts = sizes.cumsum(0) - sizes
        for rows in sizes.unique().tolist():
            index = members[starts[sizes == rows, None] + torch.arange(rows, device=ranks.device)]
            for part in index.split(_batch_of(query, rows, selection)):
                yield Tile(slice(item, item + 1), selection, index=part)


def _batch_of(query: Tensor, rows: int, selection: Heads, cycle: int = 1) -> int:
    """How many sequences of ``rows`` one tile should take."""
    num_heads = len(range(*selection.query.indices(query.shape[2])))
    most = _MAX_BATCH if cycle == 1 else _MAX_BATCH * cycle // num_heads
    return min(most, max(1, _rows_of_tile(query, query.dtype) // (rows * num_heads)))


def _rows_of_tile(x: Tensor, dtype: torch.dtype) -> int:
    """How many rows ``[d]`` of ``x``, in ``dtype``, over all sequences and heads, one tile should take."""
    return _TILE_BYTES[x.device.type] // (x.shape[-1] * dtype.itemsize)


def _parts(query: Tensor, key: Tensor, problem: Problem, dtype: torch.dtype) -> Iterator[tuple[slice, Heads]]:
    """Rows and heads that can be computed by themselves, in pieces of about a tile in ``dtype``."""
    batch, seq, heads, _ = query.shape
    if not query.numel():
        return
    group = heads // key.shape[2]
    budget = max(1, _rows_of_tile(query, dtype) // batch)
    block = seq
    aligned = lcm(*(w for w, _ in problem.branches))
    if problem.positions is None and problem.origin % aligned == 0:
        block = min(seq, aligned * max(1, budget // (aligned * heads)))
    step = max(1, budget // (block * group))
    for start in range(0, seq, block):
        for kv_head in range(0, key.shape[2], step):
            kv_heads = slice(kv_head, min(kv_head + step, key.shape[2]))
            yield (
                slice(start, min(start + block, seq)),
                Heads(slice(kv_heads.start * group, kv_heads.stop * group), kv_heads),
            )


def _part_of(problem: Problem, rows: slice, heads: Heads) -> Problem:
    return replace(
        problem,
        padding=None if problem.padding is None else problem.padding[:, rows],
        positions=None if problem.positions is None else problem.positions[:, rows],
        origin=problem.origin + rows.start,
        first_head=problem.first_head + heads.query.start,
    )
