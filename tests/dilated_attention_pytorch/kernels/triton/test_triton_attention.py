"""The Triton kernels against the oracle: on a GPU where there is one, else interpreted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from problems import LAYOUTS, Problem
from torch import Tensor

from dilated_attention_pytorch import dilated_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INF = float("inf")
LONG_NET = ((16, 1), (32, 2), (64, 4), (96, 6), (192, 12))

# Small: the interpreter takes some 20 microseconds for each scalar.
small_problems = st.builds(
    lambda group, kv_heads, **rest: Problem(heads=group * kv_heads, kv_heads=kv_heads, **rest),
    group=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    batch=st.integers(1, 2),
    seq=st.sampled_from((1, 2, 5, 8, 16, 17, 24, 33)),
    head_dim=st.sampled_from((3, 16)),
    branches=st.lists(
        st.tuples(st.sampled_from((4, 6, 8, 12, 16, 24, 100)), st.sampled_from((1, 1, 2, 3, 4, 6))),
        min_size=1,
        max_size=3,
    ).map(tuple),
    is_causal=st.booleans(),
    padded=st.booleans(),
    ranked=st.sampled_from(("none", "none", "one row", "row each")),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
interpreted = settings(suppress_health_check=[HealthCheck.too_slow])


def on_device(x: Any) -> Any:
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def compute(problem: Problem, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """[out, lse, three gradients] of the kernels and of the oracle on the same rounded inputs."""
    *inputs, grad = (x.detach() for x in problem.tensors(dtype))
    mine = [on_device(x).requires_grad_() for x in inputs]
    arguments = {name: on_device(x) for name, x in problem.arguments.items()}

    def run() -> list[Tensor]:
        out, lse = dilated_attention(*mine, **arguments, backend="triton", return_lse=True)
        return [out, lse, *torch.autograd.grad(out, mine, on_device(grad))]

    # A thread of its own: deep in Hypothesis's frames CPython maps and unmaps memory at every call.
    with ThreadPoolExecutor(1) as thread:
        out, lse, *grads = thread.submit(run).result()
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert lse.dtype == torch.float32
    assert all(x.is_contiguous() and x.dtype == dtype for x in grads)
    exact = [x.double().requires_grad_() for x in inputs]
    expected, expected_lse = oracle.attention(
        *exact,
        problem.branches,
        is_causal=problem.is_causal,
        padding=problem.padding,
        positions=problem.positions,
    )
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    return [x.cpu() for x in (out, lse, *grads)], [expected, expected_lse, *expected_grads]


def assert_close(got: list[Tensor], expected: list[Tensor]) -> None:
    for x, y in zip(got, expected, strict=True):
        size = max(1.0, y.detach().nan_to_num(neginf=0.0).abs().max().item())
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=2e-5 * size)


@settings(interpreted, max_examples=15)
@given(small_problems)
@example(Problem(2, 20, 2, 1, 16, ((6, 1), (12, 2)), True, False, "row each", "contiguous", 0))
def test_equals_the_oracle(problem: Problem):
    assert_close(*compute(problem, torch.float32))


@pytest.mark.usefixtures("once")
@settings(interpreted, max_examples=5, suppress_health_check=list(HealthCheck))
@given(small_problems)
@example(Problem(1, 64, 2, 2, 16, LONG_NET, True, False, "none", "contiguous", 0))
@example(Problem(1, 40, 2, 1, 16, ((8, 1), (8, 1), (16, 2), (100, 4)), False, True, "none", "contiguous", 1))
@example(Problem(1, 56, 2, 1, 16, ((56, 1), (56, 2)), False, False, "none", "contiguous", 2))  # whole blocks
@example(Problem(1, 40, 4, 4, 16, ((5, 2), (10, 4)), True, False, "none", "contiguous", 3))  # 4 without 2
def test_scoring_shared_keys_once_equals_the_oracle(problem: Problem):
    assert_close(*compute(replace(problem, ranked="none"), torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(interpreted, max_examples=6)
@given(problem=small_problems)
def test_half_precision_is_within_its_rounding(problem: Problem, dtype: torch.dtype):
    got, expected = compute(problem, dtype)
    query, key, _, grad = (x.detach().double().abs() for x in problem.tensors(dtype))
    half_unit = 0.51 * torch.finfo(dtype).eps
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        half_unit *= 2  # the interpreter cuts bfloat16 off, it does not round
    # The backward starts from the rounded output: its rowsum(grad * out) is off by as much.
    rowsum_error = (grad * half_unit * expected[0].abs()).sum(-1)
    scale = problem.head_dim**-0.5
    inherited = (
        0.0,
        0.0,
        rowsum_error[..., None] * scale * key.max(),
        rowsum_error.sum() * scale * query.max(),
        0.0,
    )
    for x, y, slack in zip(got, expected, inherited, strict=True):
        size = max(1.0, y.detach().nan_to_num(neginf=0.0).abs().max().item())
        own = 0.0 if x.dtype == torch.float32 else half_unit * y.abs()
        # The weights in the products are rounded too; interpreted, those of bfloat16 are kept in float32.
        exact_weights = DEVICE.type == "cpu" and dtype == torch.bfloat16
        weights = 0.0 if exact_weights else 2 * half_unit * size
        difference = (x.double() - y).masked_fill(x == y, 0.0).abs()  # -inf equals -inf
        assert (difference <= own + slack + weights + 2e-5 * size).all()


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("seq", "heads", "kv_heads", "head_dim", "branches"),
    [
        pytest.param(63, 4, 4, 16, ((16, 1), (32, 2), (64, 4)), id="nested"),
        pytest.param(111, 4, 2, 16, ((16, 1), (48, 3)), id="ragged"),
        pytest.param(37, 3, 3, 40, ((200, 1),), id="dense"),
        pytest.param(41, 3, 1, 16, ((7, 3), (41, 7), (9, 1)), id="incommensurate"),
        pytest.param(12, 4, 4, 16, ((3, 5), (4, 9)), id="rates-above-segments"),
        pytest.param(30, 2, 1, 256, ((8, 1), (30, 2)), id="wide-heads"),
        # A tile that begins at 14 sees 15 keys, one less than a block.
        pytest.param(32, 1, 1, 16, ((32, 1), (32, 15)), id="one-key-short-of-a-block"),
    ],
)
@pytest.mark.overflow
def test_readable_cases(seq, heads, kv_heads, head_dim, branches, is_causal):
    problem = Problem(1, seq, heads, kv_heads, head_dim, branches, is_causal, False, "none", LAYOUTS[0], 1)
    assert_close(*compute(problem, torch.float32))


@pytest.mark.overflow
def test_ranks_and_segments_beyond_32_bits():
    ranks = torch.tensor([0, 1, 2**31 - 2, 2**31 - 1, 2**31 + 4, 2**40 - 1, 2**40])
    query, key, value = inputs(len(ranks))
    arguments = {"segment_lengths": [2**40, 4], "dilation_rates": [1, 2], "positions": ranks.to(DEVICE)}
    out = dilated_attention(query, key, value, **arguments, backend="triton")
    expected = dilated_attention(query, key, value, **arguments, backend="reference")
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.overflow
@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(
    "branches", [((2**40, 1), (2**40, 2)), ((2**31 - 1, 1), (8, 1), (2**31 - 1, 3))], ids=str
)
def test_segments_that_hold_everything(branches):
    problem = Problem(1, 21, 3, 3, 16, branches, True, False, "none", LAYOUTS[0], 1)
    assert_close(*compute(problem, torch.float32))


@pytest.mark.parametrize("setting", ["legacy", "new"])
def test_float32_products_follow_pytorchs_setting(setting: str):
    """However TF32 was allowed, a call runs (PyTorch refuses to answer some of its own questions)."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        if setting == "legacy":
            torch.set_float32_matmul_precision("high")
        else:
            matmul.fp32_precision = "tf32"
        from dilated_attention_pytorch.kernels.triton.launch import _precision

        assert (_precision(torch.float32), _precision(torch.bfloat16)) == ("tf32", "ieee")
        dilated_attention(*inputs(5), [8], [1], backend="triton")
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before
    assert _precision(torch.float32) == "ieee"


def inputs(n: int = 40, heads: int = 2) -> list[Tensor]:
    return [torch.randn(1, n, heads, 16, device=DEVICE) for _ in range(3)]


@pytest.mark.parametrize("changed", [1, 17, 39])
def test_a_later_token_changes_nothing_earlier(changed: int):
    qkv = inputs()
    arguments = {"segment_lengths": [16, 40], "dilation_rates": [1, 2], "is_causal": True}
    before = dilated_attention(*qkv, **arguments, backend="triton")
    for x in qkv:
        x[:, changed:] += 1
    after = dilated_attention(*qkv, **arguments, backend="triton")
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before, after)


def test_every_run_gives_the_same_bits():
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        qkv = [x.requires_grad_() for x in inputs()]
        out = dilated_attention(*qkv, [16, 40], [1, 2], is_causal=True, backend="triton")
        runs.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    for x, y in zip(*runs, strict=True):
        assert torch.equal(x, y)


def test_unserved_queries_give_zero_and_zero_gradients():
    qkv = [x.requires_grad_() for x in inputs(12, heads=4)]
    padding = torch.zeros(1, 12, dtype=torch.bool, device=DEVICE)
    padding[0, 4:8] = True
    out, lse = dilated_attention(*qkv, [4], [3], key_padding_mask=padding, backend="triton", return_lse=True)
    unserved = (lse == -INF).transpose(1, 2)
    assert unserved.any()
    assert not unserved.all()
    assert (out[unserved] == 0).all()
    grads = torch.autograd.grad(out.sum(), qkv)
    assert all(x.isfinite().all() for x in grads)
    assert (grads[0][unserved] == 0).all()


def test_ignored_keys_may_hold_anything():
    query, key, value = inputs(20)
    padding = torch.arange(20, device=DEVICE)[None] % 3 == 1
    expected = dilated_attention(
        query, key, value, [8, 20], [1, 2], key_padding_mask=padding, backend="triton"
    )
    key[padding], value[padding] = torch.nan, INF
    out = dilated_attention(query, key, value, [8, 20], [1, 2], key_padding_mask=padding, backend="triton")
    assert torch.equal(out, expected)


def test_a_mask_need_not_be_contiguous():
    qkv = inputs(20)
    padding = (torch.arange(40, device=DEVICE) % 3 == 1)[None, ::2]
    masks = (padding, padding.contiguous())
    outs = [
        dilated_attention(*qkv, [8, 20], [1, 2], key_padding_mask=mask, backend="triton") for mask in masks
    ]
    assert torch.equal(*outs)


def test_a_nan_is_not_hidden():
    query, key, value = (torch.randn(1, 8, 1, 16, device=DEVICE) for _ in range(3))
    key[0, 6] = torch.nan  # offered to query 0 by the second branch only
    out = dilated_attention(query, key, value, [2, 8], [1, 2], backend="triton")
    assert out[0, 0].isnan().all()
    assert out[0, 1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5, 2, 16), (2, 0, 2, 16)])
def test_empty_inputs_give_empty_outputs(shape: tuple[int, ...]):
    qkv = [torch.randn(shape, requires_grad=True, device=DEVICE) for _ in range(3)]
    out, lse = dilated_attention(*qkv, [4], [2], backend="triton", return_lse=True)
    assert out.shape == shape
    assert lse.shape == (shape[0], shape[2], shape[1])
    assert [x.shape for x in torch.autograd.grad(out.sum(), qkv)] == [torch.Size(shape)] * 3


def test_large_scores_do_not_overflow():
    qkv = [200 * x for x in inputs(24)]
    out = dilated_attention(*qkv, [8, 24], [1, 2], is_causal=True, backend="triton")
    expected, _ = oracle.attention(*(x.cpu() for x in qkv), [(8, 1), (24, 2)], is_causal=True)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-2)
