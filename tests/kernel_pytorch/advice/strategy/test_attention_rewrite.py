"""Attention by hand becomes the fused call, and nothing else does."""

from __future__ import annotations

import copy

import pytest
import torch
from advice_forms import FORMS, LOOK_ALIKES, compiled, error, inputs


@pytest.fixture(autouse=True)
def fresh_dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_forms_are_found_and_equal(form):
    model = form.make()
    original, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    recorder = compiled(model, dynamic=True)
    for length in (63, 111):
        q, k, v = inputs(length, seed=length)
        wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
        weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
        out, reference = model(q, k, v), exact(*wide)
        assert error(out, reference) < 1e-6
        parameters = list(zip(model.parameters(), exact.parameters(), strict=True))
        found = torch.autograd.grad((out * weight).sum(), [q, k, v, *(p for p, _ in parameters)])
        wanted = torch.autograd.grad((reference * weight).sum(), [*wide, *(p for _, p in parameters)])
        assert max(map(error, found, wanted)) < 4e-6
        with torch.no_grad():
            assert error(model(q, k, v), reference) < 1e-6
            assert error(model(q, k, v), original(q, k, v).double()) < 1e-6
    assert len(recorder.graphs) == 2  # one for all lengths, in training and in inference
    assert len(recorder.fused) == 1 + form.trains
    recorder.graphs = recorder.graphs[not form.trains :]
    assert all(node.kwargs["is_causal"] == form.causal for node in recorder.fused)
    left = {"softmax", "exp", "matmul", "bmm", "baddbmm", "einsum", "masked_fill"}
    assert not recorder.names() & (left | {"tril", "triu", "arange", "full"} if form.causal else left)


@pytest.mark.parametrize("form", LOOK_ALIKES, ids=lambda form: form.name)
def test_look_alikes_are_left_alone(form):
    model = form.make()
    original = copy.deepcopy(model)
    recorder = compiled(model, dynamic=True)
    q, k, v = inputs(63)
    assert torch.equal(model(q, k, v), original(q, k, v))
    with torch.no_grad():
        assert torch.equal(model(q, k, v), original(q, k, v))
    assert len(recorder.graphs) == 2
    assert not recorder.fused


def test_numbers():
    """What was asked: at least 18 of 20 in training and in inference, none of 8."""
    assert len(FORMS) == 20
    assert len(LOOK_ALIKES) == 8
    assert sum(form.trains for form in FORMS) >= 18
