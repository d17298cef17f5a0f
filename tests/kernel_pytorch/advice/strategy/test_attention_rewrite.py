"""Attention by hand becomes the fused call, and nothing else does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from advice_forms import BATCH, FORMS, HEADS, LONGEST, LOOK_ALIKES, WIDTH
from torch import nn

from kernel_pytorch.advice.strategy.attention_rewrite import attention_backend, rewrite_attention


class Recorder:
    """A backend that runs a graph as it is, and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph_module, inputs):
        graph_module.graph.lint()
        self.graphs.append(graph_module)
        return graph_module.forward

    @property
    def fused(self):
        """The calls of the fused attention."""
        nodes = [node for graph in self.graphs for node in graph.graph.nodes]
        return [node for node in nodes if node.target is F.scaled_dot_product_attention]

    def names(self):
        return {getattr(n.target, "__name__", n.target) for graph in self.graphs for n in graph.graph.nodes}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, **options):
    recorder = Recorder()
    model.compile(backend=attention_backend(recorder), **options)
    return recorder


def inputs(length, seed=0, dtype=torch.float32, batch=BATCH):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, HEADS, length, WIDTH)
    return [t.to(dtype).requires_grad_() for t in torch.randn(shape, generator=generator).unbind()]


def error(value, reference):
    return ((value.double() - reference).norm() / reference.norm().clamp_min(1e-12)).item()


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
    assert len(recorder.graphs) == len(recorder.fused) == 2  # one for all lengths, in training and inference
    assert all(node.kwargs["is_causal"] == form.causal for node in recorder.fused)
    assert not recorder.names() & {
        "softmax",
        "exp",
        "matmul",
        "bmm",
        "baddbmm",
        "einsum",
        "tril",
        "triu",
        "arange",
    }


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
