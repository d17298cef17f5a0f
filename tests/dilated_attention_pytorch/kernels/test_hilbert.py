from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.kernels.hilbert import hilbert_order


def cells(shape: tuple[int, ...]) -> Tensor:
    """Coordinates of the cells along the curve ``[prod(shape), len(shape)]``; it visits each once."""
    order = hilbert_order(shape)
    assert order.dtype == torch.int64
    assert order.sort().values.equal(torch.arange(prod(shape)))
    return torch.stack(torch.unravel_index(order, shape), dim=1)


def step_lengths(shape: tuple[int, ...]) -> Tensor:
    """Per step of the curve: along how many axes it goes; it goes by one cell along each."""
    steps = cells(shape).diff(dim=0).abs()
    assert bool((steps <= 1).all())
    return steps.sum(1)


@pytest.mark.parametrize("shape", [(1,), (2,), (13,), (1, 9), (9, 1), (1, 1, 1), (1, 7, 1), (7, 1, 1)])
def test_a_line_is_walked_from_its_start(shape: tuple[int, ...]):
    assert hilbert_order(shape).equal(torch.arange(prod(shape)))


def test_two_dimensions_need_one_diagonal_step_at_most():
    """It is needed where the longer side is odd and the shorter even."""
    for shape in product(range(1, 25), repeat=2):
        diagonal = int((step_lengths(shape) > 1).sum())
        assert diagonal == (max(shape) % 2 == 1 and min(shape) % 2 == 0), shape


@pytest.mark.parametrize("shape", [(100, 60), (128, 96), (2, 301), (999, 3)])
def test_large_rectangles_need_no_more(shape: tuple[int, int]):
    assert int((step_lengths(shape) > 1).sum()) == (max(shape) % 2 == 1 and min(shape) % 2 == 0)


def test_three_dimensions_with_even_sides_need_no_diagonal_step():
    for shape in product(range(2, 13, 2), repeat=3):
        assert bool((step_lengths(shape) == 1).all()), shape


def test_three_dimensions_with_odd_sides_go_diagonally_within_a_plane_at_most():
    longest = {shape: int(step_lengths(shape).max()) for shape in product(range(2, 10), repeat=3)}
    assert set(longest.values()) == {1, 2}
    assert longest[7, 6, 4] == longest[5, 5, 5] == 2
    assert int(step_lengths((31, 33, 35)).max()) == 2


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (64, 64), (4, 4, 4), (16, 16, 16)])
def test_powers_of_two_finish_each_aligned_block_before_the_next(shape: tuple[int, ...]):
    cell = cells(shape)
    block = shape[0] // 2
    while block > 1:
        left = (cell // block).diff(dim=0).any(dim=1).sum()
        assert left == (shape[0] // block) ** len(shape) - 1
        block //= 2


def test_four_by_four_is_the_classical_curve():
    assert hilbert_order((4, 4)).tolist() == [0, 4, 5, 1, 2, 3, 7, 6, 10, 11, 15, 14, 13, 9, 8, 12]


@pytest.mark.parametrize("shape", [(), (2, 2, 2, 2), (0,), (4, 0), (-1, 3), (3, 4, -2)])
def test_a_bad_grid_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="grid_shape must be 1 to 3 sides of at least 1") as error:
        hilbert_order(shape)
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("shape", [16, "44", None, (4.0, 4), (True, 4), ("4", 4)])
def test_a_grid_of_another_type_is_refused(shape: object):
    with pytest.raises(TypeError, match=r"grid_shape must (be a sequence of|hold) int"):
        hilbert_order(shape)
