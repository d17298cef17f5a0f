"""From tensors to a kernel's arguments, its grid and its launch."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch
import triton
from torch import Tensor

from ..problem import Problem
from .index import tables_of
from .tuning import default_blocks, family_of, is_worth_tuning, tuned
from .visits import Visits, visits_of
from .walk import Extent, Times


@dataclass(frozen=True)
class Call:
    """A problem, and the positions of its keys if not those of the queries.

    Args:
        problem: the call; its padding is that of the keys.
        key_origin: position of key 0; None: that of query 0.
        times: int64 for each query and each key, what causality compares; None: their positions.
    """

    problem: Problem
    key_origin: int | None = None
    times: tuple[Tensor, Tensor] | None = None


def launch(
    kernel: Any,
    matrices: tuple[Tensor, ...],
    statistics: tuple[Tensor, ...],
    call: Call,
    *,
    rows: Tensor,
    columns: Tensor,
    of_keys: bool,
    **constants: Any,
) -> None:
    """Run a kernel over tiles of ``rows``.

    Args:
        kernel: of forward.py or backward.py.
        matrices: its ``[b, ..., d]`` arguments, the last dimension contiguous.
        statistics: its ``[b, h, ...]`` arguments.
        call: what to compute.
        rows, columns: the matrix of which a program keeps rows, and the one whose rows it walks over.
        of_keys: the rows are keys.
        constants: compile-time arguments of this kernel alone.
    """
    problem = call.problem
    origins = [problem.origin, problem.origin if call.key_origin is None else call.key_origin]
    times = call.times
    if of_keys:
        origins.reverse()
        times = None if times is None else times[::-1]
    batch, num_rows, heads, head_dim = rows.shape
    visits = visits_of(problem.branches)
    interpreted = triton.knobs.runtime.interpret
    family = None if interpreted else family_of(rows.device)
    blocks = default_blocks(kernel, visits, rows.element_size(), head_dim, family)

    index = None
    if problem.positions is None:
        num_cells, cell, base = _cells(origins[0], num_rows, visits)
        cell_rows = min(cell, num_rows)
    else:
        index = tables_of(
            problem.positions,
            problem.branches,
            blocks["BLOCK_ROWS"],
            is_causal=problem.is_causal,
            of_keys=of_keys,
        )
        num_cells, cell, cell_rows, base = index.tiles.shape[1], 1, 1, 0
    queries, keys = (columns, rows) if of_keys else (rows, columns)
    extent = Extent(
        num_cells=num_cells,
        cell=cell,
        cell_rows=cell_rows,
        base=base,
        num_rows=num_rows,
        num_columns=columns.shape[1],
        row_origin=origins[0],
        column_origin=origins[1],
        first_head=problem.first_head,
        group=queries.shape[2] // keys.shape[2],
        per_item=0 if index is None or len(index.tiles) == 1 else 1,
    )
    aligned = all(x.stride(0) % 16 == 0 == x.stride(2) % 16 for x in matrices)
    arguments = (
        *matrices,
        *statistics,
        None if problem.padding is None else problem.padding.contiguous().view(torch.uint8),
        index,
        None if times is None else Times(*(x.contiguous() for x in times)),
        tuple((x.stride(1), x.stride(2)) for x in matrices),
        *(x.stride(0) for x in matrices),
        *(stride for x in statistics for stride in x.stride()),
        *extent,
        problem.scale,
    )
    constants |= {
        "VISITS": visits,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "CAUSAL": problem.is_causal,
        "ALIGNED": aligned,
        "UPCAST": interpreted and rows.dtype == torch.bfloat16,
        "PRECISION": _precision(rows.dtype),
    }

    def grid(chosen: dict[str, Any]) -> tuple[int, int]:
        tiles = num_cells
        if index is None:
            per_class = triton.cdiv(triton.cdiv(cell_rows, visits.classes), chosen["BLOCK_ROWS"])
            tiles *= min(visits.classes, cell_rows) * per_class
        return tiles * batch, heads

    # Measuring runs a kernel many times, which one that adds to its output does not allow. For rows of more
    # than 256 bytes only one size of blocks fits.
    row_bytes = rows.element_size() * head_dim
    tunable = index is None and not constants.get("CONTINUES", False) and row_bytes <= 256
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        if tunable and is_worth_tuning(prod(grid(blocks)), rows.device):
            tuned(kernel)[grid](*arguments, **constants)
        else:
            kernel[grid](*arguments, **constants, **blocks)


def _precision(dtype: torch.dtype) -> str:
    # Of PyTorch's settings for TF32 this one can be read, whichever of them was set.
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def _cells(origin: int, num_rows: int, visits: Visits) -> tuple[int, int, int]:
    """Number and length of the cells, and the position where the first begins.

    A cell is as long as the greatest common divisor of the segment lengths of which a segment ends between
    two rows: no segment ends inside. 3000 rows from 0, w = 1024, 2048, 4096: 3 cells of 1024.
    """
    length = 0
    for w in visits.segments:
        if (origin + num_rows - 1) // w > origin // w:
            length = gcd(length, w)
    if length == 0:
        return 1, num_rows, origin
    base = origin // length * length
    return triton.cdiv(origin + num_rows - base, length), length, base
