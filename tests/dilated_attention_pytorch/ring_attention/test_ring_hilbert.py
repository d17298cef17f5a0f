"""Attention along a Hilbert curve on one device; tokens of the oracle stand in row-major order."""

from __future__ import annotations

from math import prod

import oracle
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dilated_attention_pytorch import dilated_attention
from dilated_attention_pytorch.kernels.hilbert import hilbert_order
from dilated_attention_pytorch.ring_attention import (
    BaseRingAttention,
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    shard_sequence,
    variants,
)
from dilated_attention_pytorch.ring_attention.variants import HilbertMixin

SEGMENTS, RATES = (8, 16, 5), (1, 3, 2)
BRANCHES = tuple(zip(SEGMENTS, RATES, strict=True))
GRIDS = [(37,), (4, 6), (5, 7), (2, 3, 4), (1, 1)]


def tensors(seq: int, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query, key, value (leaves), a gradient of the output, and a padding mask."""
    random = torch.Generator().manual_seed(seq)

    def draw(num_heads: int) -> Tensor:
        return torch.randn(2, seq, num_heads, 8, generator=random, dtype=torch.float64)

    leaves = [draw(h).requires_grad_() for h in (heads, kv_heads, kv_heads)]
    return *leaves, draw(heads), torch.rand(2, seq, generator=random) < 0.3


def attend(module: RingDilatedAttentionHilbert, *qkv: Tensor, is_causal: bool, padding: Tensor | None = None):
    """The module on tokens in row-major order, its output in row-major order."""
    in_order = [module.apply_hilbert_ordering(x) for x in qkv]
    padding = None if padding is None else module.apply_hilbert_ordering(padding)
    return module.apply_hilbert_ordering(module(*in_order, is_causal, padding), inverse=True)


def with_gradients(out: Tensor, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("ring_size", [None, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_oracle_and_positions(
    grid: tuple[int, ...], ring_size: int | None, is_causal: bool, padded: bool
):
    *qkv, grad, padding = tensors(prod(grid))
    padding = padding if padded else None
    rank = hilbert_order(grid).argsort()
    module = RingDilatedAttentionHilbert(
        RingAttentionConfig(segment_lengths=SEGMENTS, dilation_rates=RATES, ring_size=ring_size),
        grid_shape=grid,
    )
    got = with_gradients(attend(module, *qkv, is_causal=is_causal, padding=padding), qkv, grad)
    exact, _ = oracle.attention(*qkv, BRANCHES, is_causal=is_causal, padding=padding, positions=rank)
    torch.testing.assert_close(got, with_gradients(exact, qkv, grad), rtol=0, atol=1e-10)
    by_positions = dilated_attention(
        *qkv, SEGMENTS, RATES, is_causal=is_causal, key_padding_mask=padding, positions=rank
    )
    torch.testing.assert_close(got, with_gradients(by_positions, qkv, grad), rtol=0, atol=1e-10)


def test_one_undilated_branch_over_all_is_plain_causal_attention():
    """Causality is by row-major index, so the curve leaves no trace."""
    *qkv, _, _ = tensors(35, kv_heads=4)
    module = RingDilatedAttentionHilbert(
        RingAttentionConfig(segment_lengths=[64], dilation_rates=[1]), grid_shape=(5, 7)
    )
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(attend(module, *qkv, is_causal=True), plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_without_a_grid_it_is_the_ring_attention_it_inherits_from(is_causal: bool):
    config = RingAttentionConfig(segment_lengths=SEGMENTS, dilation_rates=RATES, ring_size=2)
    *qkv, _, padding = tensors(30)
    module = RingDilatedAttentionHilbert(config)
    assert module.apply_hilbert_ordering(qkv[0]) is qkv[0]
    assert module(*qkv, is_causal, padding).equal(RingDilatedAttention(config)(*qkv, is_causal, padding))


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_the_tail_that_sharding_pads_stands_after_all_tokens(is_causal: bool):
    grid, cells = (5, 7), 35
    *qkv, _, _ = tensors(cells)
    module = RingDilatedAttentionHilbert(
        RingAttentionConfig(segment_lengths=SEGMENTS, dilation_rates=RATES, sharding="zigzag"),
        grid_shape=grid,
    )
    shards, masks = zip(
        *(shard_sequence(module.apply_hilbert_ordering(x), 0, 1, "zigzag") for x in qkv), strict=True
    )
    assert shards[0].shape[1] == cells + 1
    out = module.apply_hilbert_ordering(module(*shards, is_causal, masks[0])[:, :cells], inverse=True)
    torch.testing.assert_close(out, attend(module, *qkv, is_causal=is_causal), rtol=0, atol=1e-10)
    if is_causal:  # nobody sees the tail, even without the mask
        unmasked = module(*shards, is_causal)[:, :cells]
        torch.testing.assert_close(
            module.apply_hilbert_ordering(unmasked, inverse=True), out, rtol=0, atol=1e-10
        )


@pytest.mark.parametrize(("sharding", "seq"), [("contiguous", 36), ("zigzag", 37), ("zigzag", 34)])
def test_a_sequence_that_is_not_the_grid_is_refused(sharding: str, seq: int):
    module = RingDilatedAttentionHilbert(
        RingAttentionConfig(segment_lengths=[4], dilation_rates=[2], sharding=sharding), grid_shape=(5, 7)
    )
    *qkv, _, _ = tensors(seq)
    with pytest.raises(ValueError, match=f"grid_shape must have .* got 35 cells, {seq} tokens"):
        module(*qkv)


@pytest.mark.parametrize(("shape", "dim"), [((2, 24, 3), 1), ((24,), 0), ((2, 3, 24), -1), ((24, 2), -2)])
def test_the_inverse_undoes_the_ordering(shape: tuple[int, ...], dim: int):
    mixin = HilbertMixin()
    mixin.grid_shape = (2, 3, 4)
    x = torch.arange(prod(shape)).view(shape)
    ordered = mixin.apply_hilbert_ordering(x, dim=dim)
    assert ordered.select(dim, 5).equal(x.select(dim, int(hilbert_order((2, 3, 4))[5])))
    assert mixin.apply_hilbert_ordering(ordered, inverse=True, dim=dim).equal(x)
    assert mixin.apply_hilbert_ordering(
        mixin.apply_hilbert_ordering(x, inverse=True, dim=dim), dim=dim
    ).equal(x)


def test_both_orderings_are_differentiable():
    mixin = HilbertMixin()
    mixin.grid_shape = (3, 2)
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    for inverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, inverse=inverse: mixin.apply_hilbert_ordering(x, inverse), x
        )


def test_the_order_follows_the_grid():
    mixin = HilbertMixin()
    for grid in ((4, 6), (6, 4), (24,), [3, 8]):
        mixin.grid_shape = grid
        assert mixin.apply_hilbert_ordering(torch.arange(24), dim=0).equal(hilbert_order(grid))


def test_the_order_moves_with_the_module_and_is_not_saved():
    module = torch.nn.Sequential(
        RingDilatedAttentionHilbert(
            RingAttentionConfig(segment_lengths=[4], dilation_rates=[2]), grid_shape=(4, 6)
        )
    )
    x = torch.arange(24.0)
    ordered = module[0].apply_hilbert_ordering(x, dim=0)
    (order,) = module.buffers()
    assert order.equal(hilbert_order((4, 6)))
    assert module.state_dict() == {}
    module.half()
    assert next(module.buffers()).dtype == torch.int64
    module.to("meta")
    assert next(module.buffers()).is_meta
    assert module[0].apply_hilbert_ordering(x.to("meta"), dim=0).is_meta
    assert module[0].apply_hilbert_ordering(x, dim=0).equal(ordered)


def test_an_order_built_without_autograd_serves_with_it():
    mixin = HilbertMixin()
    mixin.grid_shape = (3, 11)  # of no other test: built here
    with torch.inference_mode():
        mixin.apply_hilbert_ordering(torch.randn(1, 33))
    x = torch.randn(1, 33, requires_grad=True)
    mixin.apply_hilbert_ordering(x).sum().backward()
    assert x.grad.equal(torch.ones_like(x))


def test_bad_arguments_name_their_values():
    config = RingAttentionConfig(segment_lengths=[4], dilation_rates=[2])
    module = RingDilatedAttentionHilbert(config, grid_shape=(4, 6))
    with pytest.raises(ValueError, match=r"got \[4, 6\] = 24 cells, 25 tokens along dim=1"):
        module.apply_hilbert_ordering(torch.zeros(2, 25))
    with pytest.raises(ValueError, match=r"dim must be .*, got dim=1, shape \[24\]"):
        module.apply_hilbert_ordering(torch.zeros(24))
    with pytest.raises(ValueError, match=r"grid_shape must be 1 to 3 sides of at least 1, got \[4, 0\]"):
        RingDilatedAttentionHilbert(config, grid_shape=(4, 0))
    with pytest.raises(TypeError, match="grid_shape must hold int only"):
        RingDilatedAttentionHilbert(config, grid_shape=(4.0, 6))
    with pytest.raises(TypeError, match=r"query must be a torch\.Tensor, got NoneType"):
        module(None, None, None)


def test_names():
    assert variants.HilbertRingAttention is RingDilatedAttentionHilbert
    assert issubclass(RingDilatedAttentionHilbert, BaseRingAttention)
    assert "grid_shape=(4, 6)" in repr(
        RingDilatedAttentionHilbert(
            RingAttentionConfig(segment_lengths=[4], dilation_rates=[2]), grid_shape=(4, 6)
        )
    )
    with pytest.raises(AttributeError, match="no attribute 'PeanoRingAttention'"):
        _ = variants.PeanoRingAttention
