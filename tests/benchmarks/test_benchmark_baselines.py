import pytest
import torch
from benchmarks.attention import bound_inputs
from benchmarks.baselines import fused_attention, gather, gather_pad_scatter, scatter

from dilated_attention_pytorch.core.pattern import DilatedPattern
from dilated_attention_pytorch.kernels.reference import reference_attention

BATCH, SEQ, HEADS, DIM = 2, 48, 4, 8
BRANCHES = [(8, 1), (16, 2), (48, 4)]


def tensors(count=3):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(BATCH, SEQ, HEADS, DIM, generator=generator, dtype=torch.float64) for _ in range(count)
    )


@pytest.mark.parametrize("branch", BRANCHES)
def test_gather_takes_the_rows_of_the_definition(branch):
    w, r = branch
    (x,) = tensors(1)
    rows = gather(x, branch)
    assert rows.is_contiguous()
    assert rows.shape == (BATCH * SEQ // w, HEADS, w // r, DIM)
    for batch in range(BATCH):
        for segment in range(SEQ // w):
            for head in range(HEADS):
                positions = [p for p in range(SEQ) if p // w == segment and (p % w) % r == head % r]
                assert torch.equal(rows[batch * (SEQ // w) + segment, head], x[batch, positions, head])


@pytest.mark.parametrize("branch", BRANCHES)
def test_scatter_undoes_gather_and_fills_the_rest(branch):
    w, r = branch
    (x,) = tensors(1)
    member = (torch.arange(SEQ)[:, None] % w) % r == torch.arange(HEADS) % r
    dense = scatter(gather(x, branch), branch, BATCH, -7.0)
    assert torch.equal(dense, torch.where(member[None, :, :, None], x, -7.0))


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_gather_pad_scatter_is_dilated_attention(is_causal):
    q, k, v = tensors()
    segments, rates = zip(*BRANCHES, strict=True)
    expected, _ = reference_attention(
        q, k, v, DilatedPattern(segments, rates, HEADS), is_causal=is_causal, softmax_scale=DIM**-0.5
    )
    torch.testing.assert_close(
        gather_pad_scatter(q, k, v, BRANCHES, is_causal), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_the_bound_does_the_work_of_a_branch_forward_and_backward(branch, is_causal):
    """One branch alone, computed by the bound, is dilated attention with that branch."""
    q, k, v, grad = tensors(4)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    pattern = DilatedPattern((branch[0],), (branch[1],), HEADS)
    expected, _ = reference_attention(*leaves, pattern, is_causal=is_causal, softmax_scale=DIM**-0.5)
    expected_grads = torch.autograd.grad(expected, leaves, grad)

    ((bq, bk, bv, bgrad),) = bound_inputs((*leaves, grad), [branch])
    assert all(x.is_contiguous() and x.is_leaf for x in (bq, bk, bv, bgrad))
    out = fused_attention(bq, bk, bv, is_causal)
    grads = torch.autograd.grad(out, (bq, bk, bv), bgrad)
    for rows, dense in zip((out, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(scatter(rows, branch, BATCH, 0.0), dense, rtol=1e-12, atol=1e-12)
