"""Masks: what is the causal triangle at every length, and rows whose keys are all hidden."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from advice_forms import HEADS, LONGEST, WIDTH, TriangleBuffer, Written, compiled, error, inputs
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def fresh_dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def scores_of(q, k):
    return q @ k.transpose(-2, -1) / math.sqrt(WIDTH)


def run(model, tensors):
    """The output, and the gradients of all its elements with different weights."""
    out = model(*tensors)
    weight = torch.linspace(1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors[:3])]


class Masked(nn.Module):
    """Attention with a mask that is given: True for keys that are hidden."""

    def __init__(self, fill: float, *, after: bool = False) -> None:
        super().__init__()
        self.fill, self.after = fill, after

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        scores = q @ k.mT
        scores = (
            scores.masked_fill(hidden, self.fill) / 4
            if self.after
            else (scores / 4).masked_fill(hidden, self.fill)
        )
        return scores.softmax(-1) @ v


@pytest.mark.parametrize("after", [False, True], ids=["before", "scaled-after"])
@pytest.mark.parametrize("fill", [-math.inf, -1e9, torch.finfo(torch.float32).min])
def test_rows_without_a_key_are_equal(fill, after):
    model = Masked(fill, after=after)
    original = copy.deepcopy(model)
    recorder = compiled(model)
    tensors = [t.detach().mul_(20).double().requires_grad_() for t in inputs(9)]
    hidden = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    hidden[0, :, 3] = True
    found, wanted = run(model, [*tensors, hidden]), run(original, [*tensors, hidden])
    assert len(recorder.fused) == 1
    assert wanted[0][0, :, 3].isnan().all() == (fill == -math.inf)
    for value, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, reference, equal_nan=True)


def additive(q, k, v, mask):
    return torch.softmax(scores_of(q, k) + mask, dim=-1) @ v


@pytest.mark.parametrize("shape", [(9,), (9, 9), (1, 9, 9), (2, 1, 1, 9), (2, HEADS, 9, 9)], ids=str)
def test_added_masks_of_all_shapes(shape):
    class Model(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return additive(q, k, v, mask)

    model = Model()
    recorder = compiled(model)
    tensors = inputs(9)
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    mask.view(-1, 9)[-1] = -math.inf
    mask.view(-1, 9)[0] = torch.finfo(torch.float32).min
    with torch.no_grad():
        torch.testing.assert_close(model(*tensors, mask), additive(*tensors, mask), equal_nan=True)
    assert len(recorder.fused) == 1
    for value, reference in zip(run(model, [*tensors, mask]), run(additive, [*tensors, mask]), strict=True):
        torch.testing.assert_close(value, reference, equal_nan=True)
    assert len(recorder.fused) == 1  # the gradients of such a row would differ


def test_a_buffer_that_changes_is_seen():
    """In place, replaced, by load_state_dict: the graph is not compiled again, and the result is right."""
    model = TriangleBuffer().eval()
    original = copy.deepcopy(model)
    recorder = compiled(model, dynamic=True)
    tensors = inputs(9)

    def equal():
        return error(model(*tensors), original(*tensors).double()) < 1e-6

    assert equal()
    assert recorder.fused[0].kwargs["is_causal"]
    for each in (model, original):
        each.mask[:, :, 5, 3] = 0
    assert equal()
    for each in (model, original):
        each.mask = torch.ones_like(each.mask)
    assert equal()
    for each in (model, original):
        each.load_state_dict({"mask": torch.tril(torch.ones(1, 1, LONGEST, LONGEST))})
    assert equal()
    assert len(recorder.graphs) == 1


def test_a_triangle_given_as_input_is_checked_at_each_call():
    model = Masked(-math.inf)
    original = copy.deepcopy(model)
    recorder = compiled(model)
    tensors = inputs(9)
    triangle = torch.ones(9, 9, dtype=torch.bool).triu(1)
    other = triangle.clone()
    other[4, 2] = True
    for hidden in (triangle, triangle.clone(), other, triangle):
        assert error(model(*tensors, hidden), original(*tensors, hidden).double()) < 1e-6
    assert recorder.fused[0].kwargs["is_causal"]
    assert len(recorder.graphs) == 1


def shifted_triangle(q, k, v):
    n = q.size(-2)
    return scores_of(q, k).masked_fill(torch.ones(n, n).triu(2) == 1, -1e9).softmax(-1) @ v


def window(q, k, v):
    n = q.size(-2)
    seen = torch.ones(n, n).tril() - torch.ones(n, n).tril(-3)
    return scores_of(q, k).masked_fill(seen == 0, -math.inf).softmax(-1) @ v


def anticausal(q, k, v):
    n = q.size(-2)
    return (
        torch.where(torch.arange(n)[:, None] <= torch.arange(n), scores_of(q, k), -math.inf).softmax(-1) @ v
    )


def last_rows(q, k, v):
    """A slice that does not start at the first row: aligned with the end of the keys."""
    mask = torch.ones(LONGEST, LONGEST, dtype=torch.bool).triu(1)[LONGEST - 4 :, :]
    k, v = (F.pad(t, (0, 0, 0, LONGEST - t.size(-2))) for t in (k, v))
    return scores_of(q[:, :, :4], k).masked_fill(mask, -math.inf).softmax(-1) @ v


def fewer_queries(q, k, v):
    n = q.size(-2)
    q = q[:, :, : n // 2]
    return scores_of(q, k).masked_fill(torch.ones(n // 2, n).triu(1) == 1, -math.inf).softmax(-1) @ v


def written_between(q, k, v):
    n = q.size(-2)
    mask = torch.zeros(n, n)
    view = mask[:n, :n]
    mask.masked_fill_(torch.ones(n, n).triu(1) == 1, -math.inf)
    mask[0, 1] = 0
    return (scores_of(q, k) + view).softmax(-1) @ v


@pytest.mark.parametrize(
    "function", [shifted_triangle, window, anticausal, last_rows, fewer_queries, written_between]
)
def test_other_masks_are_not_causal(function):
    model = Written(function)
    recorder = compiled(model, dynamic=True)
    tensors = [t.detach() for t in inputs(11)]
    assert error(model(*tensors), function(*tensors).double()) < 1e-6
    assert [node.kwargs["is_causal"] for node in recorder.fused] == [False]


def in_place_bias(q, k, v):
    """As torch's documentation writes it: a bias that is filled in place, and added in place."""
    n = q.size(-2)
    bias = torch.zeros(n, n, dtype=q.dtype)
    seen = torch.ones(n, n, dtype=torch.bool).tril(diagonal=0)
    bias.masked_fill_(seen.logical_not(), -math.inf)
    scores = scores_of(q, k)
    scores += bias
    return torch.softmax(scores, dim=-1) @ v


def generated_mask(q, k, v):
    """nn.Transformer's mask in its older form, in float, transposed twice."""
    n = q.size(-2)
    mask = (torch.triu(torch.ones(n, n)) == 1).transpose(0, 1)
    mask = mask.float().masked_fill(mask == 0, -math.inf).masked_fill(mask == 1, 0.0)
    return (scores_of(q, k) + mask).softmax(-1) @ v


def transposed_triangle(q, k, v):
    n = q.size(-2)
    scores = scores_of(k, q).masked_fill(torch.ones(n, n).tril(-1).bool(), -1e9)
    return scores.softmax(-2).mT @ v


def multiplied_triangle(q, k, v):
    n = q.size(-2)
    position = torch.arange(n)
    hidden = position.view(1, 1, 1, n) > position.view(1, 1, n, 1)
    return (scores_of(q, k) + hidden * -1e9).softmax(-1) @ v


@pytest.mark.parametrize(
    "function", [in_place_bias, generated_mask, transposed_triangle, multiplied_triangle]
)
def test_triangles_are_causal(function):
    model = Written(function)
    recorder = compiled(model, dynamic=True)
    for length in (9, 12):
        tensors = inputs(length)
        assert error(model(*tensors), function(*tensors).double()) < 1e-6
    assert [node.kwargs["is_causal"] for node in recorder.fused] == [True]


class Biased(nn.Module):
    """T5: a learned bias of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(HEADS, 9, 9, generator=torch.Generator().manual_seed(3)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (scores_of(q, k) + self.bias).softmax(-1) @ v


def test_a_learned_bias_is_fused_in_inference_alone():
    model = Biased()
    original = copy.deepcopy(model)
    recorder = compiled(model)
    tensors = [t.detach() for t in inputs(9)]
    with torch.no_grad():
        assert error(model(*tensors), original(*tensors).double()) < 1e-6
    assert len(recorder.fused) == 1
    out = model(*tensors)
    (gradient,) = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    (wanted,) = torch.autograd.grad(original(*tensors).square().sum(), list(original.parameters()))
    assert torch.equal(gradient, wanted)
    assert len(recorder.fused) == 1
