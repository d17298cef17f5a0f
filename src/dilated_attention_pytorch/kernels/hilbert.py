"""Hilbert curves through grids of any size.

The generalised Hilbert curve of Jakub Červený ("gilbert", https://github.com/jakubcerveny/gilbert, BSD-2):
a box is cut into 2, 3 or 5 boxes that the curve crosses one after the other, until they are lines. Here all
boxes of a level are cut at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


def hilbert_order(grid_shape: Sequence[int]) -> Tensor:
    """The cells of a grid in the order in which a generalised Hilbert curve visits them.

    Consecutive cells are adjacent in 1-D and, when all sides are even, in 3-D. In 2-D one step is diagonal
    when the longer side is odd and the shorter even, which no curve of this kind can avoid; in 3-D with odd
    sides several steps are diagonal within a plane, and none is longer. Equal sides of a power of two give
    the classical curve, which visits each aligned block of such sides without leaving it.

    Args:
        grid_shape: 1 to 3 sides of any positive size.

    Returns:
        int64 ``[prod(grid_shape)]``, a permutation: entry k is the row-major index of the k-th cell.

    Raises:
        TypeError: ``grid_shape`` is not a sequence of int.
        ValueError: it has no or more than three sides, or one below 1.
    """
    shape = check_grid_shape(grid_shape)
    order = np.empty(math.prod(shape), dtype=np.int64)
    boxes = _whole(shape)
    while len(boxes.first):
        is_line = (boxes.sides > 1).sum(0) <= 1
        _write_lines(order, boxes.where(is_line))
        boxes = _split(boxes.where(~is_line))
    return torch.from_numpy(order)


def check_grid_shape(grid_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the 1 to 3 positive sides as a tuple, or raise TypeError or ValueError."""
    if not isinstance(grid_shape, Sequence):
        raise TypeError(f"grid_shape must be a sequence of int, got {grid_shape!r}")
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in grid_shape):
        raise TypeError(f"grid_shape must hold int only, got {list(grid_shape)!r}")
    if not 1 <= len(grid_shape) <= 3 or any(side < 1 for side in grid_shape):
        raise ValueError(f"grid_shape must be 1 to 3 sides of at least 1, got {list(grid_shape)}")
    return tuple(grid_shape)


@dataclass(frozen=True)
class _Boxes:
    """m boxes. The curve enters each at its corner and leaves it near the far end of its first axis.

    Args:
        first: rank of the corner along the curve ``[m]``.
        corner: row-major index of the corner ``[m]``.
        sides: cells along the box's three axes ``[3, m]``.
        steps: what one cell along them, away from the corner, adds to the row-major index ``[3, m]``.
    """

    first: Ints
    corner: Ints
    sides: Ints
    steps: Ints

    def where(self, chosen: NDArray[np.bool_]) -> _Boxes:
        return _Boxes(self.first[chosen], self.corner[chosen], self.sides[:, chosen], self.steps[:, chosen])


def _whole(shape: tuple[int, ...]) -> _Boxes:
    axes = [(side, math.prod(shape[i + 1 :])) for i, side in enumerate(shape)]
    axes = sorted(axes, reverse=True) + [(1, 0)] * (3 - len(axes))  # along the longest side first
    sides, steps = np.array(axes, dtype=np.int64).T
    start = np.zeros(1, dtype=np.int64)
    return _Boxes(start, start, sides[:, None], steps[:, None])


def _write_lines(order: Ints, boxes: _Boxes) -> None:
    length = boxes.sides.max(0)
    step = np.take_along_axis(boxes.steps, boxes.sides.argmax(0)[None], 0)[0]
    along = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
    order[np.repeat(boxes.first, length) + along] = (
        np.repeat(boxes.corner, length) + np.repeat(step, length) * along
    )


def _split(boxes: _Boxes) -> _Boxes:
    w, h, d = boxes.sides
    wide = (2 * w > 3 * h) & (2 * w > 3 * d)
    high = ~wide & (3 * h > 4 * d)
    deep = ~wide & (3 * d > 4 * h)
    parts = [
        *_cut_first_axis(boxes.where(wide)),
        *_cut_two_axes(boxes.where(high)),
        *_cut_two_axes(_swap_last_axes(boxes.where(deep))),
        *_cut_three_axes(boxes.where(~(wide | high | deep))),
    ]
    return _Boxes(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.corner for part in parts]),
        np.concatenate([part.sides for part in parts], axis=1),
        np.concatenate([part.steps for part in parts], axis=1),
    )


def _swap_last_axes(boxes: _Boxes) -> _Boxes:
    return _Boxes(boxes.first, boxes.corner, boxes.sides[[0, 2, 1]], boxes.steps[[0, 2, 1]])


class _Axis(NamedTuple):
    """An axis, or a part of one, of each of m boxes: its cells and its step, both ``[m]``."""

    cells: Ints
    step: Ints

    def back(self) -> _Axis:
        return _Axis(self.cells, -self.step)

    def far_end(self) -> Ints:
        return (self.cells - 1) * self.step

    def halves(self) -> tuple[_Axis, _Axis]:
        # A box whose first axis is even can be crossed from entry to exit without a diagonal step.
        half = self.cells // 2
        half = half + ((half % 2 == 1) & (self.cells > 2))
        return _Axis(half, self.step), _Axis(self.cells - half, self.step)


def _axes(boxes: _Boxes) -> list[_Axis]:
    return [_Axis(cells, step) for cells, step in zip(boxes.sides, boxes.steps, strict=True)]


def _cut_first_axis(boxes: _Boxes) -> Iterator[_Boxes]:
    a, b, c = _axes(boxes)
    a1, a2 = a.halves()
    return _visit(boxes, (0, a1, b, c), (a1.cells * a.step, a2, b, c))


def _cut_two_axes(boxes: _Boxes) -> Iterator[_Boxes]:
    a, b, c = _axes(boxes)
    (a1, a2), (b1, b2) = a.halves(), b.halves()
    return _visit(
        boxes,
        (0, b1, c, a1),
        (b1.cells * b.step, a, b2, c),
        (a.far_end() + b1.far_end(), b1.back(), c, a2.back()),
    )


def _cut_three_axes(boxes: _Boxes) -> Iterator[_Boxes]:
    a, b, c = _axes(boxes)
    (a1, a2), (b1, b2), (c1, c2) = a.halves(), b.halves(), c.halves()
    up = b1.cells * b.step
    return _visit(
        boxes,
        (0, b1, c1, a1),
        (up, c, a1, b2),
        (b1.far_end() + c.far_end(), a, b1.back(), c2.back()),
        (a.far_end() + up + c.far_end(), c.back(), a2.back(), b2),
        (a.far_end() + b1.far_end(), b1.back(), c1, a2.back()),
    )


def _visit(boxes: _Boxes, *parts: tuple[Ints | int, _Axis, _Axis, _Axis]) -> Iterator[_Boxes]:
    """The parts of each box, in the order of the curve: where each starts, from the corner, and its axes."""
    first = boxes.first
    for start, *axes in parts:
        sides = np.stack([axis.cells for axis in axes])
        yield _Boxes(first, boxes.corner + start, sides, np.stack([axis.step for axis in axes]))
        first = first + sides.prod(0)
