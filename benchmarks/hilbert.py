"""Tokens on a grid: how near are the keys that a query sees, in row-major order and along a Hilbert curve?

Letters: n cells, w segment length, r dilation rate.
"""

from __future__ import annotations

import time
from math import prod
from statistics import median

import torch
from torch import Tensor

from dilated_attention_pytorch.kernels.hilbert import hilbert_order

from .registry import Options, Table, benchmark

GRIDS = ((128, 128), (100, 60), (24, 24, 24))
BRANCHES = ((64, 1), (256, 1), (256, 4), (1024, 1), (1024, 4), (4096, 1), (4096, 8))
BUILT = ((128, 128), (1024, 1024), (1000, 999), (100, 100, 100))
QUERY_ROWS = 1024
"""Rows of the distance matrix that are held at once."""


@benchmark(
    "hilbert",
    numerics=(
        "tests/dilated_attention_pytorch/kernels/test_hilbert.py",
        "tests/dilated_attention_pytorch/ring_attention/test_ring_hilbert.py",
    ),
)
def hilbert(options: Options) -> list[Table]:
    """Tokens on a grid: distance to the keys of a query's segment, row-major and along a Hilbert curve."""
    distances = {
        f"{_name(grid)}-{w}-{r}": (grid, w, r) for grid in GRIDS for w, r in (*BRANCHES, (prod(grid), 1))
    }
    builds = {f"build-{_name(grid)}": grid for grid in BUILT}
    names = options.select((*distances, *builds))
    tables = [
        Table(
            title="Distance from a query to the keys that it sees",
            columns=("grid", "w", "r", "row-major", "Hilbert", "Hilbert / row-major"),
            rows=[_distances(*case) for name, case in distances.items() if name in names],
            note="Mean Euclidean distance, in cells, over all pairs of a branch, bidirectional, every offset "
            "counted once.",
        ),
        Table(
            title="Time to build the order",
            columns=("grid", "ms", "ns a cell"),
            rows=[_build(grid, options) for name, grid in builds.items() if name in names],
            note=f"Median of {options.pairs} calls on the CPU; a module builds it once.",
        ),
    ]
    return [table for table in tables if table.rows]


def mean_distance(cells: Tensor, w: int, r: int) -> float:
    """Mean distance between the two cells of a pair that branch ``(w, r)`` offers.

    Args:
        cells: coordinates ``[n, axes]`` in the order of the sequence.
        w, r: the branch; its r offsets count alike.
    """
    total, pairs = 0.0, 0
    for segment in torch.split(cells.double(), w):
        for offset in range(min(r, len(segment))):
            members = segment[offset::r]
            total += sum(float(torch.cdist(rows, members).sum()) for rows in torch.split(members, QUERY_ROWS))
            pairs += len(members) ** 2
    return total / pairs


def _distances(grid: tuple[int, ...], w: int, r: int) -> list[str]:
    order = hilbert_order(grid)
    row_major, along_curve = (
        mean_distance(torch.stack(torch.unravel_index(cells, grid), dim=1), w, r)
        for cells in (torch.arange(len(order)), order)
    )
    ratio = along_curve / row_major
    return [_name(grid), str(w), str(r), f"{row_major:.1f}", f"{along_curve:.1f}", f"{ratio:.2f}"]


def _build(grid: tuple[int, ...], options: Options) -> list[str]:
    seconds = []
    for _ in range(options.pairs):
        start = time.perf_counter()
        hilbert_order(grid)
        seconds.append(time.perf_counter() - start)
    typical = median(seconds)
    return [_name(grid), f"{typical * 1e3:.1f}", f"{typical * 1e9 / prod(grid):.0f}"]


def _name(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
