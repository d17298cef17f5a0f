"""The parameters of a call, all but query, key and value, and tiles of its rows: what the backends share.

Letters: b batch, n sequence, h query heads, g key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

Branch = tuple[int, int]
"""Segment length w and dilation rate r."""


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which results and gradients of ``x`` add up: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def largest_score(dtype: torch.dtype) -> float:
    """The largest lse that the backward takes: beyond it ``exp(score - lse)`` is too coarse to be a weight.

    2 ** 20 for float32, 2 ** 49 for float64, from where on neighbouring numbers are 1/8 apart. Below it the
    weights are not exact either: their relative error is up to about ``lse * eps``.
    """
    return 0.125 / torch.finfo(dtype).eps


class HugeScoresError(ValueError):
    """Scores so large that rounding makes their gradients meaningless."""


def check_scores(grad_out: Tensor, lse: Tensor) -> None:
    """Raise HugeScoresError where ``lse [b, h, n]`` is too large and ``grad_out [b, n, h, d]`` is not 0.

    On the CPU only: elsewhere the host would have to wait for the answer.
    """
    if lse.device.type != "cpu":
        return
    limit = largest_score(lse.dtype)
    beyond = (lse.abs() > limit) & lse.isfinite()
    if not bool(beyond.any()):
        return
    beyond &= (grad_out != 0).any(-1).transpose(1, 2)
    if bool(beyond.any()):
        raise HugeScoresError(
            f"query and key have scores of {lse[beyond].abs().max():.1e}: above {limit:.1e} their gradients "
            f"would be wrong in {str(lse.dtype).removeprefix('torch.')}; "
            "normalise query and key, lower softmax_scale, or use backend='reference' (on one device)"
        )


@dataclass(frozen=True)
class Problem:
    """The parameters of a call: all but query, key and value.

    Args:
        branches: (w, r) pairs.
        is_causal: a query sees no later token.
        scale: factor on the dot products.
        padding: bool ``[b, n]``, True = ignored key.
        positions: int64 ``[b, n]``, ranks for membership.
        origin: position of row 0 in the whole sequence; not used with ``positions``.
        first_head: global index of query head 0; offsets follow global indices.
    """

    branches: tuple[Branch, ...]
    is_causal: bool
    scale: float
    padding: Tensor | None = None
    positions: Tensor | None = None
    origin: int = 0
    first_head: int = 0


@dataclass(frozen=True)
class Heads:
    """Query heads and the key/value heads that they use, in order and in equal shares."""

    query: slice
    kv: slice


@dataclass(frozen=True)
class Tile:
    """Rows of some segments, for some heads of some batch elements.

    The rows are ``index [segments, rows]`` where given, else every ``rate``-th from ``offset`` in each of
    ``count`` segments of ``length`` after ``start``.

    With a ``cycle`` above 1 the heads come in cycles of that many, whose offsets are ``offset``,
    ``offset + 1`` and so on; ``length`` is then a multiple of ``rate``. To the kernel each cycle of each
    segment is a sequence of its own, and [segments] below stands for [segments, cycles].
    """

    batch: slice
    heads: Heads
    start: int = 0
    count: int = 1
    length: int = 0
    offset: int = 0
    rate: int = 1
    index: Tensor | None = None
    cycle: int = 1

    def take(self, x: Tensor, heads: slice) -> Tensor:
        """``x [b, n, h, ...]`` -> ``[b', segments, rows, h', ...]``: a view, unless indexed."""
        x = x[self.batch, :, heads]
        if self.index is not None:
            return torch.unflatten(x[:, self.index.flatten()], 1, self.index.shape)
        x = x[:, self.start : self.start + self.count * self.length]
        x = torch.unflatten(x, 1, (self.count, self.length))
        if self.cycle == 1:
            # A rate beyond the length chooses one row, and would overflow the stride.
            return x[:, :, self.offset :: min(self.rate, self.length)]
        # [b', segments, rows, offsets, cycles, cycle, ...]: head i of a cycle has the i-th of the offsets.
        x = torch.unflatten(torch.unflatten(x, 3, (-1, self.cycle)), 2, (-1, self.rate))
        x = x[:, :, :, self.offset : self.offset + self.cycle].diagonal(dim1=3, dim2=5)
        return x.transpose(2, 3).movedim(-1, 4)

    def put(self, x: Tensor, heads: slice, rows: Tensor) -> None:
        """Write ``rows [b', segments, rows, h', ...]`` where :meth:`take` reads in ``x``."""
        if self.index is not None:
            x[self.batch, :, heads][:, self.index.flatten()] = rows.flatten(1, 2)
        else:
            self.take(x, heads).copy_(rows)

    def rows_for_kernel(self, x: Tensor, heads: slice) -> Tensor:
        """``x [b, n, h, d]`` -> ``[b' * segments, h', rows, d]``: a view for r = 1 where strides allow."""
        rows = self.take(x, heads).transpose(-3, -2)
        if self.index is None and self.rate > 1:
            rows = rows.contiguous()
        return rows.flatten(0, -4)

    def rows_from_kernel(self, rows: Tensor) -> Tensor:
        """``[b' * segments, h', rows, ...]`` -> ``[b', segments, rows, h', ...]``: a view."""
        segments = self.count if self.index is None else self.index.shape[0]
        if self.cycle == 1:
            return torch.unflatten(rows, 0, (-1, segments)).transpose(2, 3)
        cycles = (self.heads.query.stop - self.heads.query.start) // self.cycle
        return torch.unflatten(rows, 0, (-1, segments, cycles)).transpose(3, 4)

    def ignored_keys(self, padding: Tensor | None) -> Tensor | None:
        """``padding [b, n]`` -> ``[b' * segments, rows]``."""
        if padding is None:
            return None
        return self.take(padding[..., None], slice(0, 1)).flatten(0, 1)[..., 0]


def head_groups(offset: int, rate: int, heads: int, group: int, first_head: int) -> Iterator[Heads]:
    """The heads of one offset with their key/value heads, in slices that the kernels can pair evenly.

    8 heads in groups of 4, r = 2, offset 0: heads 0 2 4 6 with key/value heads 0 1, two each. 6 heads in
    groups of 3: heads 0 2 with 0, then head 4 with 1.
    """
    start = (offset - first_head) % rate
    rate = min(rate, heads)  # as for rows: a larger one chooses one head
    shared = [
        (kv, len(list(run))) for kv, run in groupby(head // group for head in range(start, heads, rate))
    ]
    first, each = shared[0]
    step = shared[1][0] - first if len(shared) > 1 else 1
    # One kernel call can pair them only if every key/value head serves equally many of them.
    if shared == [(first + i * step, each) for i in range(len(shared))]:
        yield Heads(slice(start, heads, rate), slice(first, shared[-1][0] + 1, step))
        return
    for kv_head, count in shared:
        yield Heads(slice(start, start + count * rate, rate), slice(kv_head, kv_head + 1))
        start += count * rate


def merge_rows(tile: Tile, out: Tensor, lse: Tensor, rows_out: Tensor, rows_lse: Tensor) -> None:
    """Mix a tile's result into ``out [b, n, h, d]`` and ``lse [b, n, h]`` by their softmax weights."""
    heads = tile.heads.query
    # Contiguous: of other numbers the CPU takes one at a time.
    old_lse, rows_lse = tile.take(lse, heads).contiguous(), rows_lse.contiguous()
    weight = torch.sigmoid(rows_lse - old_lse).masked_fill_(rows_lse == float("-inf"), 0.0)
    tile.put(out, heads, tile.take(out, heads).lerp_(rows_out, weight[..., None]))
    tile.put(lse, heads, torch.logaddexp(old_lse, rows_lse))
