from __future__ import annotations

import numpy as np
import pytest
import torch

from kernel_pytorch.advice.sample import Sample


def test_values_of_all_shapes_of_input():
    x, y = torch.zeros(1), torch.ones(1)
    assert Sample.of(x).args == (x,)
    assert Sample.of([x, y]).args == (x, y)
    assert Sample.of({"x": x}).kwargs == {"x": x}
    assert Sample.of((x, {"deep": [y]})).tensors() == [x, y]


def test_draws_are_normal_with_the_mean_and_standard_deviation_of_the_sample():
    torch.manual_seed(0)
    x = torch.randn(100, 100) * 3 + 7
    fresh = Sample.of(x).draw(1).args[0]
    assert fresh.dtype == torch.float32
    assert fresh.mean().item() == pytest.approx(7, abs=0.15)
    assert fresh.std().item() == pytest.approx(3, abs=0.1)
    assert torch.corrcoef(torch.stack([x.flatten(), fresh.flatten()]))[0, 1].abs() < 0.05
    assert torch.equal(fresh, Sample.of(x).draw(1).args[0])
    assert not torch.equal(fresh, Sample.of(x).draw(2).args[0])


def test_draws_stay_in_the_range_of_the_sample():
    fresh = Sample.of(torch.rand(1000)).draw(0).args[0]
    assert fresh.min() >= 0
    assert fresh.max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_draws_keep_the_dtype(dtype):
    fresh = Sample.of(torch.randn(64).to(dtype)).draw(0).args[0]
    assert fresh.dtype == dtype
    assert fresh.isfinite().all()
    assert (fresh != fresh.flip(0)).any()


def test_ids_are_permuted_so_that_they_stay_valid():
    ids = torch.randint(0, 1000, (3, 100))
    fresh = Sample.of(ids).draw(0).args[0]
    assert not torch.equal(ids, fresh)
    assert torch.equal(ids.sort(1).values, fresh.sort(1).values)


def test_columns_of_ids_with_different_ranges_stay_apart():
    ids = torch.stack([torch.arange(50), torch.arange(50) + 1000], 1)
    fresh = Sample.of(ids).draw(0).args[0]
    assert fresh[:, 0].max() < 50
    assert fresh[:, 1].min() >= 1000


def test_masks_with_infinities_are_permuted_and_no_row_is_masked_whole():
    mask = torch.full((32, 32), -torch.inf).triu(1)
    fresh = Sample.of(mask).draw(0).args[0]
    assert not torch.equal(mask, fresh)
    assert (fresh == 0).any(1).all()
    assert (fresh == 0).sum() == (mask == 0).sum()


def test_draws_leave_numbers_and_the_sample_alone():
    x = torch.randn(4, 4)
    before = x.clone()
    sample = Sample((x, 3, None, "name"), {"flag": True})
    fresh = sample.draw(0)
    assert fresh.args[1:] == (3, None, "name")
    assert fresh.kwargs == {"flag": True}
    assert torch.equal(x, before)


def test_draws_keep_strides_and_requires_grad():
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    fresh = Sample.of(x).draw(0).args[0]
    assert fresh.stride() == x.stride()
    assert fresh.requires_grad
    assert fresh.is_leaf


def test_draws_of_empty_sparse_and_single_values():
    sparse = torch.eye(3).to_sparse()
    fresh = Sample.of((torch.empty(0, 4), torch.tensor(5), torch.tensor(2.5), sparse)).draw(0).args
    assert fresh[0].shape == (0, 4)
    assert fresh[1].item() == 5
    assert fresh[2].item() == 2.5
    assert torch.equal(fresh[3].to_dense(), torch.eye(3))


@pytest.mark.parametrize(
    ("shapes", "at_63"),
    [
        pytest.param([(2, 10, 4)], [(2, 63, 4)], id="features"),
        pytest.param([(10,)], [(63,)], id="one dimension"),
        pytest.param([(1, 10)], [(1, 63)], id="ids"),
        pytest.param([(1, 10, 10)], [(1, 63, 10)], id="width equals length"),
        pytest.param([(10, 10, 4)], [(10, 63, 4)], id="batch equals length"),
        pytest.param([(1, 10, 4), (10, 10)], [(1, 63, 4), (63, 63)], id="causal mask"),
        pytest.param([(1, 10, 4), (1, 1, 10, 10)], [(1, 63, 4), (1, 1, 63, 63)], id="4-D mask"),
        pytest.param([(1, 10, 4), (1, 10), (3,)], [(1, 63, 4), (1, 63), (3,)], id="padding mask"),
        pytest.param([(1, 10), (1, 10, 10)], [(1, 63), (1, 63, 10)], id="second has width = length"),
    ],
)
def test_other_lengths(shapes, at_63):
    sample = Sample.of(tuple(torch.randn(shape) for shape in shapes))
    assert [tuple(tensor.shape) for tensor in sample.at_length(63).tensors()] == at_63
    assert sample.at_length(63).at_length(10).tensors()[0].equal(sample.tensors()[0])
    assert sample.at_length(5).length == 5


def test_a_longer_sample_repeats_so_that_ids_stay_valid():
    assert Sample.of(torch.tensor([3, 1, 2])).at_length(7).args[0].tolist() == [3, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("value", [torch.randn(1, 3, 8, 8), torch.tensor(1.0), "text"])
def test_images_and_numbers_have_no_length(value):
    assert Sample.of((value,)).length is None
    with pytest.raises(ValueError, match="length=") as raised:
        Sample.of((value,)).at_length(4)
    assert "\n" not in str(raised.value)


def test_arrays_of_numpy_become_tensors_and_are_remarked():
    sample, remarks = Sample((np.zeros((2, 3)), np.arange(4)), {"deep": [np.ones(1, bool)], "x": 3}).moved(
        torch.device("cpu"), torch.float32
    )
    assert [tensor.dtype for tensor in sample.tensors()] == [torch.float32, torch.int64, torch.bool]
    assert sample.kwargs["x"] == 3
    assert remarks == (
        "input 0, an array of NumPy, was made a tensor: float32 on cpu",
        "input 1, an array of NumPy, was made a tensor: int64 on cpu",
        "input deep, an array of NumPy, was made a tensor: bool on cpu",
    )


def test_tensors_on_another_device_are_moved_and_remarked():
    sample, remarks = Sample.of((torch.ones(2), torch.ones(2, device="meta"))).moved(torch.device("meta"))
    assert {tensor.device.type for tensor in sample.tensors()} == {"meta"}
    assert remarks == ("input 0 was moved from cpu to meta",)


def test_what_is_in_place_is_left_without_a_remark():
    x = torch.ones(2)
    sample, remarks = Sample.of(x).moved(torch.device("cpu"))
    assert sample.args[0] is x
    assert remarks == ()
