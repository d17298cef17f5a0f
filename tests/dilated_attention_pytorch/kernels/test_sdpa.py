from __future__ import annotations

from dataclasses import replace

import oracle
import pytest
import torch
from hypothesis import example, given, settings
from problems import LAYOUTS, Problem, problems
from torch import Tensor

from dilated_attention_pytorch import dilated_attention

PLAIN = Problem(1, 16, 4, 4, 8, ((4, 1), (8, 2), (16, 4)), True, False, "none", "contiguous", 0)


def compute(problem: Problem, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """[out, lse, three gradients] of the backend and of the oracle on the same rounded inputs."""
    query, key, value, grad = problem.tensors(dtype)
    inputs = (query, key, value)
    out, lse = dilated_attention(*inputs, **problem.arguments, backend="sdpa", return_lse=True)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, expected_lse = exactly(problem, *exact)
    grads = torch.autograd.grad(out, inputs, grad)
    assert all(x.is_contiguous() for x in grads)
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    return [out, lse, *grads], [expected, expected_lse, *expected_grads]


def exactly(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle's out and lse."""
    return oracle.attention(
        query,
        key,
        value,
        problem.branches,
        is_causal=problem.is_causal,
        padding=problem.padding,
        positions=problem.positions,
    )


def size_of(x: Tensor) -> float:
    """The largest finite magnitude, at least 1: what rounding errors are relative to."""
    return max(1.0, x.detach().nan_to_num(neginf=0.0).abs().max().item())


@settings(max_examples=250)
@given(problems)
@example(PLAIN)
@example(replace(PLAIN, seq=2, branches=((1, 1),), layout="heads first"))  # the kernel's own strides
def test_float64_equals_the_oracle(problem: Problem):
    got, expected = compute(problem, torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@settings(max_examples=100)
@given(problems)
@example(PLAIN)
def test_float32_is_within_its_rounding(problem: Problem):
    got, expected = compute(problem, torch.float32)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=2e-5 * size_of(y))


@pytest.mark.parametrize(
    ("dtype", "native"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, False)]
)
@settings(max_examples=50)
@given(problem=problems)
@example(problem=PLAIN)
@example(problem=Problem(1, 16, 1, 1, 1, ((16, 1),), False, True, "none", "contiguous", seed=1))
def test_half_precision_is_within_its_rounding(problem: Problem, dtype: torch.dtype, native: bool):
    """On CPUs with and without matrix instructions for bfloat16: the kernel takes it on both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
        got, expected = compute(problem, dtype)
    query, key, value, grad = problem.tensors(dtype)
    half_unit = 0.51 * torch.finfo(dtype).eps
    # Computed in float32, a result is off by its own rounding. Computed in bfloat16, the kernel also rounds
    # its weights, and each branch's output.
    inner = 2 * half_unit * exactly(problem, query, key, value.abs())[0] if native else 0.0
    # The backward, in float32, starts from that output: its rowsum(grad * out) is off by as much.
    rowsum_error = (grad.double().abs() * (half_unit * expected[0].abs() + inner)).sum(-1)
    scale = problem.head_dim**-0.5
    # The exponential of PyTorch's kernel for bfloat16 is off by up to 7.3e-5 of its value, and so is their
    # sum: an absolute error of the lse, however small that is.
    lse_error = 8e-5 if native else 0.0
    inherited = (
        inner,
        lse_error,
        rowsum_error[..., None] * scale * key.double().abs().max(),
        rowsum_error.sum() * scale * query.double().abs().max(),
        0.0,
    )
    for x, y, slack in zip(got, expected, inherited, strict=True):
        own = 0.0 if x.dtype == torch.float32 else half_unit * y.abs()
        difference = (x.double() - y).masked_fill(x == y, 0.0).abs()  # -inf equals -inf
        assert (difference <= own + slack + 2e-5 * size_of(y)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("seq", "heads", "kv_heads", "branches"),
    [
        (63, 8, 8, ((16, 1), (32, 2), (64, 4))),
        (111, 8, 2, ((16, 1), (48, 3))),
        (128, 6, 2, ((32, 2), (64, 4))),
        (37, 3, 3, ((200, 1),)),
        (61, 5, 1, ((7, 3), (61, 7), (9, 1))),
        (12, 4, 4, ((3, 5), (4, 9))),
    ],
)
def test_readable_cases(layout: str, is_causal: bool, seq: int, heads: int, kv_heads: int, branches):
    problem = Problem(2, seq, heads, kv_heads, 16, branches, is_causal, False, "none", layout, seed=1)
    got, expected = compute(problem, torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ranked", ["none", "row each"])
def test_rates_beyond_every_length(ranked: str):
    """Whose strides would not fit into memory's: of each segment, head j has token j alone."""
    problem = Problem(
        2, 13, 6, 3, 8, ((5, 2**63 - 1), (2**62, 7), (9, 2**40)), True, True, ranked, LAYOUTS[0], 1
    )
    got, expected = compute(problem, torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tiles_equal_one(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    """Sequences that need several tiles and parts: forced by a tiny tile."""
    from dilated_attention_pytorch.kernels import sdpa

    problem = Problem(2, 70, 6, 3, 8, ((8, 1), (16, 2), (32, 4)), True, True, "none", "contiguous", seed=2)
    ranked = Problem(2, 70, 6, 3, 8, ((8, 1), (16, 2)), True, False, "row each", "contiguous", seed=2)
    cycles = Problem(2, 76, 6, 6, 8, ((8, 1), (16, 2), (32, 4)), True, False, "none", "contiguous", seed=2)
    for case in (problem, ranked, cycles):
        whole, _ = compute(case, dtype)
        with monkeypatch.context() as patch:
            patch.setitem(sdpa._TILE_BYTES, "cpu", 16 * case.head_dim * dtype.itemsize)
            split, _ = compute(case, dtype)
        torch.testing.assert_close(split, whole)


@pytest.mark.parametrize(
    ("heads", "rows_of_tile", "calls"),
    [(8, 1000, 1), (6, 1000, 2), (8, 16, 2), (2, 1000, 1), (8, 1, 4)],
    ids=["two cycles", "a cycle and a half", "a cycle each", "half a cycle", "two heads at least"],
)
def test_heads_with_different_offsets_share_a_call(
    monkeypatch: pytest.MonkeyPatch, heads: int, rows_of_tile: int, calls: int
):
    """Of w = 16, r = 4: 4 rows of one segment for each head."""
    from dilated_attention_pytorch.kernels import sdpa

    found = []
    fused_forward = sdpa.fused_forward
    monkeypatch.setattr(sdpa, "fused_forward", lambda *a, **k: found.append(1) or fused_forward(*a, **k))
    monkeypatch.setitem(sdpa._TILE_BYTES, "cpu", rows_of_tile * 8 * 8)
    problem = Problem(1, 16, heads, heads, 8, ((16, 4),), True, False, "none", "contiguous", seed=3)
    got, expected = compute(problem, torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert len(found) == calls


@pytest.mark.parametrize("shape", [(0, 5, 2, 4), (2, 0, 2, 4), (0, 0, 2, 4)])
def test_empty_inputs_give_empty_outputs(shape: tuple[int, ...]):
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    out, lse = dilated_attention(*inputs, [4], [2], backend="sdpa", return_lse=True)
    assert out.shape == shape
    assert lse.shape == (shape[0], shape[2], shape[1])
    assert [x.shape for x in torch.autograd.grad(out.sum(), inputs)] == [torch.Size(shape)] * 3
