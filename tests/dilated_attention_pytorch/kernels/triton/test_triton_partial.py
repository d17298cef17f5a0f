"""Attention over some of the keys, as a ring needs it: partial results and gradients against the oracle."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import oracle
import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.kernels.problem import Problem

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BRANCHES = ((16, 1), (32, 2), (48, 3))


def draw(*shape: int, requires_grad: bool = False) -> Tensor:
    return torch.randn(*shape, requires_grad=requires_grad)


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().to(DEVICE) for x in tensors]


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_shards_of_keys_by_their_positions_add_up_to_the_whole(is_causal: bool):
    from dilated_attention_pytorch.kernels.triton.attention import partial_backward, partial_forward

    n, heads, kv_heads, cuts = 50, 2, 1, (0, 13, 20, 50)
    query, grad = draw(1, n, heads, 16, requires_grad=True), draw(1, n, heads, 16)
    key, value = (draw(1, n, kv_heads, 16, requires_grad=True) for _ in range(2))
    padding = torch.rand(1, n) < 0.2
    expected, expected_lse = oracle.attention(
        query, key, value, BRANCHES, is_causal=is_causal, scale=0.3, padding=padding
    )
    expected_grads = torch.autograd.grad(expected, (query, key, value), grad.double())

    q, k, v, g, ignored = on_device(query, key, value, grad, padding)
    rows = slice(7, 41)  # the queries of one rank
    problem = Problem(BRANCHES, is_causal, 0.3, origin=7)
    shards = [slice(*cut) for cut in pairwise(cuts)]
    result = None
    for shard in shards:
        result = partial_forward(
            q[:, rows],
            k[:, shard],
            v[:, shard],
            replace(problem, padding=ignored[:, shard]),
            key_origin=shard.start,
            into=result,
        )
    out, lse = result
    torch.testing.assert_close(out.cpu().double(), expected[:, rows].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse[:, :, rows], rtol=0, atol=1e-5)

    grad_query = torch.zeros_like(q[:, rows])
    key_grads = []
    for shard in shards:
        _, *found = partial_backward(
            g[:, rows],
            q[:, rows],
            k[:, shard],
            v[:, shard],
            out,
            lse,
            replace(problem, padding=ignored[:, shard]),
            key_origin=shard.start,
            into=grad_query,
        )
        key_grads.append(found)
    torch.testing.assert_close(
        grad_query.cpu().double(), expected_grads[0][:, rows].double(), rtol=0, atol=1e-5
    )
    # Keys also get a part from queries of other ranks: compare with the gradient of these rows alone.
    own_grads = torch.autograd.grad(
        oracle.attention(query, key, value, BRANCHES, is_causal=is_causal, scale=0.3, padding=padding)[0][
            :, rows
        ],
        (key, value),
        grad.double()[:, rows],
    )
    for x, y in zip((torch.cat(x, 1) for x in zip(*key_grads, strict=True)), own_grads, strict=True):
        torch.testing.assert_close(x.cpu().double(), y.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("branches", "origin", "rows"),
    [(((6, 1), (8, 1)), 8, 7), (((6, 1), (64, 1)), 64, 20), (((8, 2), (12, 3), (400, 1)), 29, 9)],
    ids=str,
)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_segments_may_end_anywhere_before_the_rows(branches, origin: int, rows: int, is_causal: bool):
    from dilated_attention_pytorch.kernels.triton.attention import partial_backward, partial_forward

    n = origin + rows
    query, grad = draw(1, n, 2, 16, requires_grad=True), draw(1, n, 2, 16)
    key, value = (draw(1, n, 2, 16, requires_grad=True) for _ in range(2))
    expected, expected_lse = oracle.attention(query, key, value, branches, is_causal=is_causal)
    mine = slice(origin, n)
    expected_grads = torch.autograd.grad(expected[:, mine], (query, key, value), grad.double()[:, mine])

    q, k, v, g = on_device(query, key, value, grad)
    problem = Problem(branches, is_causal, 0.25, origin=origin)
    out, lse = partial_forward(q[:, mine], k, v, problem, key_origin=0)
    torch.testing.assert_close(out.cpu().double(), expected[:, mine].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse[:, :, mine], rtol=0, atol=1e-5)
    grads = partial_backward(g[:, mine], q[:, mine], k, v, out, lse, problem, key_origin=0)
    wanted = (expected_grads[0][:, mine], *expected_grads[1:])
    for x, y in zip(grads, wanted, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=0, atol=1e-5)


def test_causality_by_times_of_their_own():
    from dilated_attention_pytorch.kernels.triton.attention import partial_backward, partial_forward

    rows, columns = 21, 34
    query, grad = draw(2, rows, 2, 16, requires_grad=True), draw(2, rows, 2, 16)
    key, value = (draw(2, columns, 2, 16, requires_grad=True) for _ in range(2))
    order = torch.randperm(rows + columns)
    row_times, column_times = order[:rows], order[rows:]
    scores = torch.einsum("bihd,bjhd->bhij", query.double(), key.double()) * 0.25
    hidden = row_times[:, None] < column_times[None, :]
    scores = scores.masked_fill(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    expected = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1).nan_to_num(0.0), value.double())
    blind = hidden.all(1)
    expected_grads = torch.autograd.grad(expected[:, ~blind], (query, key, value), grad.double()[:, ~blind])

    q, k, v, g = on_device(query, key, value, grad)
    # Every other one of a tensor, as the rows of a dilated block are.
    times = tuple(x.repeat_interleave(2)[::2] for x in on_device(row_times, column_times))
    problem = Problem(((2**31 - 1, 1),), True, 0.25)
    out, found_lse = partial_forward(q, k, v, problem, times=times)
    torch.testing.assert_close(out.cpu().double(), expected.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found_lse.cpu().double(), lse.detach(), rtol=0, atol=1e-5)
    grads = partial_backward(g, q, k, v, out, found_lse, problem, times=times)
    for x, y in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(x.cpu(), y.nan_to_num(0.0), rtol=0, atol=1e-5)


def test_going_on_from_nothing_is_starting():
    from dilated_attention_pytorch.kernels.triton.attention import partial_forward

    q, k, v = on_device(*(draw(1, 20, 2, 16) for _ in range(3)))
    problem = Problem(((8, 1), (20, 2)), True, 0.25)
    started = partial_forward(q, k, v, problem)
    # A view with strides of its own, as the accumulators of a ring are.
    out = torch.zeros(1, 20, 4, 16, device=DEVICE)[:, :, ::2]
    lse = torch.full((1, 20, 2), -torch.inf, device=DEVICE).transpose(1, 2)
    gone_on = partial_forward(q, k, v, problem, into=(out, lse))
    for x, y in zip(started, gone_on, strict=True):
        assert torch.equal(x, y)


def test_no_keys_leave_what_was_there():
    from dilated_attention_pytorch.kernels.triton.attention import partial_backward, partial_forward

    q = draw(1, 4, 2, 16).to(DEVICE)
    nothing = q[:, :0]
    problem = Problem(((8, 1),), False, 0.25)
    out, lse = partial_forward(q, nothing, nothing, problem)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    before = (torch.ones_like(q), torch.ones(1, 2, 4, device=DEVICE))
    out, lse = partial_forward(q, nothing, nothing, problem, into=before)
    assert (out == 1).all()
    assert (lse == 1).all()
    grads = partial_backward(q, q, nothing, nothing, out, lse, problem, into=torch.ones_like(q))
    assert (grads[0] == 1).all()
    assert grads[1].shape == nothing.shape


def test_offsets_follow_the_global_index_of_a_head():
    from dilated_attention_pytorch.kernels.triton.attention import partial_backward, partial_forward

    query, key, value = (draw(1, 20, 4, 16, requires_grad=True) for _ in range(3))
    grad, branches, heads = draw(1, 20, 4, 16), ((8, 2), (20, 3)), slice(1, 4)
    expected, expected_lse = oracle.attention(query, key, value, branches)
    wanted = torch.autograd.grad(expected, (query, key, value), grad.double())
    q, k, v, g = (x[:, :, heads] for x in on_device(query, key, value, grad))
    problem = Problem(branches, False, 0.25, first_head=1)
    out, lse = partial_forward(q, k, v, problem)
    torch.testing.assert_close(out.cpu().double(), expected[:, :, heads].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse[:, heads], rtol=0, atol=1e-5)
    for x, y in zip(partial_backward(g, q, k, v, out, lse, problem), wanted, strict=True):
        torch.testing.assert_close(x.cpu(), y[:, :, heads], rtol=0, atol=1e-5)
