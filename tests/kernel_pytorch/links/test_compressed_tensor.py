"""One tensor, compressed and back: what is exact, what is right on average, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernel_pytorch.links.compress.blockwise import Blockwise
from kernel_pytorch.links.compress.cast import Cast
from kernel_pytorch.links.compress.payload import compress, decompress
from kernel_pytorch.links.methods import CompressionMethod

NONE, FP16, BF16 = CompressionMethod.NONE, CompressionMethod.FP16, CompressionMethod.BF16
INT8, TOPK = CompressionMethod.QUANTIZED_8BIT, CompressionMethod.TOPK
POWERSGD, ADAPTIVE = CompressionMethod.POWERSGD, CompressionMethod.ADAPTIVE
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = st.sampled_from([(), (0,), (1,), (257,), (3, 0), (5, 7), (40, 30), (8, 9, 10)])


def there_and_back(tensor: Tensor, method: CompressionMethod, **options: float) -> Tensor:
    payload, metadata = compress(tensor, method, **options)
    assert payload.dtype is torch.uint8
    assert payload.ndim == 1
    assert payload.is_contiguous()
    result = decompress(payload, json.loads(json.dumps(metadata)))
    assert (result.shape, result.dtype) == (tensor.shape, tensor.dtype)
    assert result.is_contiguous()
    return result


def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(shape=SHAPES, dtype=st.sampled_from([*FLOATS, torch.complex64, torch.int64, torch.int16, torch.bool]))
def test_none_is_exact_for_every_dtype(shape: tuple[int, ...], dtype: torch.dtype):
    tensor = (10 * normal(shape)).to(dtype)
    assert torch.equal(there_and_back(tensor, NONE), tensor)


def test_none_holds_no_memory_of_the_tensor():
    tensor = torch.ones(4)
    payload, metadata = compress(tensor, NONE)
    result = decompress(payload, metadata)
    tensor.zero_()
    payload.zero_()
    assert torch.equal(result, torch.ones(4))


@given(shape=SHAPES, dtype=st.sampled_from(FLOATS), method=st.sampled_from([FP16, BF16]))
def test_16_bits_are_exact_for_what_they_hold(
    shape: tuple[int, ...], dtype: torch.dtype, method: CompressionMethod
):
    held = normal(shape, torch.float16 if method is FP16 else torch.bfloat16).to(dtype)
    held = held.to(torch.bfloat16).to(torch.float16).to(dtype)  # of both types
    assert torch.equal(there_and_back(held, method), held)
    payload, _ = compress(held, method)
    assert len(payload) == 2 * held.numel()


def test_16_bits_are_the_nearest():
    tensor = normal((1000,))
    for method, dtype in ((FP16, torch.float16), (BF16, torch.bfloat16)):
        assert torch.equal(there_and_back(tensor, method), tensor.to(dtype).float())


@given(shape=SHAPES, method=st.sampled_from([FP16, BF16, INT8]), step=st.integers(2, 3))
def test_views_with_strides(shape: tuple[int, ...], method: CompressionMethod, step: int):
    wide = normal((*shape, step * 2))
    for view in (wide[..., ::step], wide.mT if wide.ndim > 1 else wide, wide[..., :1].expand(*shape, 4)):
        assert torch.equal(there_and_back(view, method), there_and_back(view.clone(), method))


@given(st.integers(0, 600), st.integers(0, 10_000), st.sampled_from([1.0, 1e-38, 1e37]))
def test_8_bits_are_one_of_the_two_around(count: int, seed: int, size: float):
    tensor = normal((count,), seed=seed) * size
    result = there_and_back(tensor, INT8, seed=seed)
    for x, y in zip(tensor.double().split(256), result.double().split(256), strict=True):
        step = max(float(x.abs().max()) / 127, torch.finfo(torch.float32).tiny) if len(x) else 0.0
        assert ((x - y).abs() <= step * (1 + 1e-5)).all()
    payload, _ = compress(tensor, INT8)
    assert len(payload) == count + 4 * math.ceil(count / 256)


def test_8_bits_have_no_bias():
    """Errors of n independent draws average to 1 / sqrt(n) of one; a bias does not average out."""
    draws = 400
    tensor = normal((3000,)) * torch.linspace(0.01, 10, 3000)
    step = torch.cat([x.abs().max().expand(len(x)) / 127 for x in tensor.split(256)])
    errors = torch.stack([there_and_back(tensor, INT8, seed=seed) - tensor for seed in range(draws)]) / step
    expected = (errors.square().mean() / draws).sqrt()
    assert errors.mean(0).square().mean().sqrt() < 1.1 * expected
    assert abs(errors.mean()) < 5 * expected / math.sqrt(3000)


def test_tiny_numbers_are_not_lost():
    """Although 1/127 of them is no float32: a larger scale is sent, which is rarely drawn."""
    tensor, codec = torch.full((256,), 1e-44), Blockwise()
    rarely, mostly = (
        codec.decode(codec.encode(tensor, torch.full((256,), noise)), 256, torch.float32)
        for noise in (1 - 2.0**-24, 0.999)
    )
    assert (rarely > 0).all()
    assert (mostly == 0).all()


def test_draws_follow_one_another():
    codec = Blockwise(seed=3)
    tensor = normal((1000,))
    first, second = codec.encode(tensor), codec.encode(tensor)
    assert not torch.equal(first, second)
    assert torch.equal(Blockwise(seed=3).encode(tensor), first)
    assert not torch.equal(Blockwise(seed=4).encode(tensor), first)


@pytest.mark.parametrize("codec", [Cast(torch.float16), Cast(torch.bfloat16), Blockwise()])
def test_parts_travel_alone(codec: Cast | Blockwise):
    """At any offset of a message."""
    tensor = normal((700,))
    sent = codec.encode(tensor)
    assert sent.numel() == codec.nbytes(700)
    message = torch.zeros(len(sent) + 1, dtype=torch.uint8)
    message[1:] = sent
    assert torch.equal(codec.decode(message[1:], 700, torch.float64), codec.decode(sent, 700, torch.float64))
    assert codec.decode(codec.encode(tensor[:0]), 0, torch.float32).shape == (0,)


@given(shape=SHAPES, dtype=st.sampled_from(FLOATS), ratio=st.sampled_from([1e-6, 0.1, 1.0]))
def test_top_k_keeps_the_largest(shape: tuple[int, ...], dtype: torch.dtype, ratio: float):
    tensor = normal(shape, dtype)
    result = there_and_back(tensor, TOPK, ratio=ratio)
    kept = result != 0
    count = min(tensor.numel(), max(1, math.ceil(ratio * tensor.numel())))
    assert torch.equal(result[kept], tensor[kept])
    assert int(kept.sum()) == count - int((tensor == 0).sum() if ratio == 1 else 0)
    if count:
        largest = tensor.abs().flatten().sort(descending=True).values[:count]
        assert torch.equal(result.abs().flatten().sort(descending=True).values[:count], largest)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_low_rank_is_exact_for_low_ranks(dtype: torch.dtype):
    tensor = (normal((64, 4)).double() @ normal((4, 60), seed=1).double()).view(64, 6, 10).to(dtype)
    payload, metadata = compress(tensor, POWERSGD, rank=5)
    assert len(payload) == 5 * (64 + 60) * (8 if dtype is torch.float64 else 4)
    error = (decompress(payload, metadata).double() - tensor.double()).norm() / tensor.double().norm()
    computed_in = torch.float64 if dtype is torch.float64 else torch.float32
    # The tensor was rounded to its dtype, and so was the result; sums are of 64 products.
    assert error <= torch.finfo(dtype).eps + 64 * torch.finfo(computed_in).eps


def test_low_rank_projects_on_what_it_saw():
    """The error is orthogonal to P, and smaller than the matrix."""
    tensor = normal((80, 70))
    result = there_and_back(tensor, POWERSGD, rank=8)
    error = tensor - result
    assert 0.5 < error.norm() / tensor.norm() < 1
    assert abs((error * result).sum()) < 1e-3 * tensor.norm()


@pytest.mark.parametrize("shape", [(), (100,), (0, 5), (8, 8)])
def test_low_rank_sends_whole_what_it_would_not_halve(shape: tuple[int, ...]):
    tensor = normal(shape)
    assert torch.equal(there_and_back(tensor, POWERSGD), tensor)


@pytest.mark.parametrize(
    ("dtype", "chosen"),
    [
        (torch.float32, BF16),
        (torch.float64, BF16),
        (torch.bfloat16, NONE),
        (torch.float16, NONE),
        (torch.int64, NONE),
    ],
)
def test_adaptive_is_bf16_or_nothing(dtype: torch.dtype, chosen: CompressionMethod):
    assert compress(torch.ones(9, dtype=dtype), ADAPTIVE)[1]["method"] == chosen.value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", [FP16, BF16, INT8, TOPK, POWERSGD], ids=lambda method: method.value)
def test_what_is_not_finite_stays_so(method: CompressionMethod, bad: float):
    tensor = normal((64, 64))
    tensor[3, 5] = bad
    result = there_and_back(tensor, method)
    assert not result[3, 5].isfinite()
    if method in (FP16, BF16, TOPK):
        torch.testing.assert_close(result[3, 5], tensor[3, 5], equal_nan=True)
    if method is INT8:
        assert torch.equal(~result.flatten().isfinite(), torch.arange(64 * 64) < 256)


@pytest.mark.parametrize(
    ("tensor", "method", "message"),
    [
        (torch.tensor([1.0, -7e4]), FP16, "fp16 holds numbers up to 65504, got 70000: use bf16"),
        (
            torch.tensor([1e300], dtype=torch.float64),
            BF16,
            r"bf16 holds numbers up to 3.38953e\+38, got 1e\+300",
        ),
        (torch.tensor([1e300], dtype=torch.float64), INT8, r"quantized_8bit holds .* got 1e\+300: use none"),
    ],
)
def test_overflow_is_an_error(tensor: Tensor, method: CompressionMethod, message: str):
    with pytest.raises(OverflowError, match=message):
        compress(tensor, method)
    assert there_and_back(torch.tensor([math.inf]), method).isfinite().logical_not().all()


def test_a_codec_warns_once_of_overflow(caplog: pytest.LogCaptureFixture):
    codec = Cast(torch.float16)
    codec.encode(torch.tensor([math.inf, math.nan]))
    assert not caplog.messages
    for _ in range(2):
        sent = codec.encode(torch.tensor([1e6, 1.0]))
    assert torch.equal(codec.decode(sent, 2, torch.float32), torch.tensor([math.inf, 1.0]))
    assert caplog.messages == ["numbers beyond 65504 became infinite as torch.float16"]


@pytest.mark.parametrize(
    ("error", "message", "tensor", "method", "options"),
    [
        (
            TypeError,
            "fp16 takes a tensor of floats, got torch.int64: use none",
            torch.ones(2).long(),
            FP16,
            {},
        ),
        (TypeError, "topk takes a tensor of floats, got torch.bool", torch.ones(2).bool(), TOPK, {}),
        (TypeError, "tensor must be a tensor, got list", [1.0], NONE, {}),
        (TypeError, "tensor must be dense .* torch.sparse_coo", torch.eye(2).to_sparse(), NONE, {}),
        (TypeError, "hold numbers, got torch.strided on meta", torch.ones(2, device="meta"), BF16, {}),
        (TypeError, "bf16 has no option ratio; it has none", torch.ones(2), BF16, {"ratio": 0.1}),
        (ValueError, "ratio must be above 0 and at most 1, got 0", torch.ones(2), TOPK, {"ratio": 0}),
        (ValueError, "rank must be at least 1, got 0", torch.ones(2), POWERSGD, {"rank": 0}),
    ],
)
def test_refused(
    error: type[Exception], message: str, tensor: object, method: CompressionMethod, options: dict[str, float]
):
    with pytest.raises(error, match=message):
        compress(tensor, method, **options)


@pytest.mark.parametrize("method", [NONE, FP16, INT8, TOPK, POWERSGD], ids=lambda method: method.value)
def test_a_cut_payload_is_refused(method: CompressionMethod):
    payload, metadata = compress(normal((64, 64)), method)
    with pytest.raises(ValueError, match=r"payload must be \d+ bytes by the metadata, got"):
        decompress(payload[:-1], metadata)
