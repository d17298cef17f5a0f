"""The pass in whole models: what is left alone, and that it composes with other passes, modes and types."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from advice_forms import BATCH, HEADS, WIDTH, Recorder, Written, compiled, error, inputs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernel_pytorch.advice.strategy import attention_rewrite
from kernel_pytorch.advice.strategy.graph_passes import add_pass, backend_of, passes_of


@pytest.fixture(autouse=True)
def fresh_dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def scores_of(q, k):
    return q @ k.transpose(-2, -1) / WIDTH**0.5


class Attention(nn.Module):
    """As Hugging Face's models write it in eager mode: grouped queries, masks of four dimensions, dropout."""

    def __init__(self, width: int = 32, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.each = heads, groups, width // heads
        self.scaling = self.each**-0.5
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, groups * self.each) for _ in range(2))
        self.dropout = 0.0

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
        shape = (*x.shape[:-1], -1, self.each)
        q, k, v = (linear(x).view(shape).transpose(1, 2) for linear in (self.q, self.k, self.v))
        k, v = (self.repeat(t, self.heads // self.groups) for t in (k, v))
        weights = torch.matmul(q, k.transpose(2, 3)) * self.scaling
        if causal:
            length = x.shape[1]
            lowest = torch.finfo(x.dtype).min
            triangle = torch.full((length, length), fill_value=lowest, dtype=x.dtype, device=x.device)
            triangle = torch.triu(triangle, diagonal=1)
            weights = weights + triangle[None, None, :, :]
        if mask is not None:
            weights = weights + mask[:, :, :, : k.shape[-2]]
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        weights = F.dropout(weights, p=self.dropout, training=self.training)
        out = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.o(out.reshape(*x.shape[:-1], -1).contiguous()), weights

    @staticmethod
    def repeat(t: Tensor, times: int) -> Tensor:
        b, g, n, d = t.shape
        return t[:, :, None, :, :].expand(b, g, times, n, d).reshape(b, g * times, n, d)


class Stack(nn.Module):
    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.checkpointed = checkpointed

    def layer(self, layer: nn.Module, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        return x + layer(x, mask, causal)[0]

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        for layer in self.layers:
            if self.checkpointed:
                x = checkpoint(self.layer, layer, x, mask, causal, use_reentrant=False)
            else:
                x = self.layer(layer, x, mask, causal)
        return x


def seeded(make, **options):
    torch.manual_seed(0)
    return make(**options)


def gradients(model, *args):
    out = model(*args)
    return [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("causal", [False, True], ids=["padding", "causal"])
def test_models_as_hugging_face_writes_them(causal):
    """With a padding mask of the lowest number, and left padding."""
    model = seeded(Stack)
    exact = copy.deepcopy(model).double()
    recorder = compiled(model)
    x = torch.randn(2, 7, 32)
    mask = None if causal else torch.zeros(2, 1, 1, 7)
    if mask is not None:
        mask[0, ..., :3] = torch.finfo(torch.float32).min
    with torch.no_grad():
        assert error(model(x, mask, causal), exact(x.double(), mask, causal)) < 1e-6
    assert [node.kwargs["is_causal"] for node in recorder.fused] == [causal, causal]
    found = gradients(model, x, mask, causal)
    wanted = gradients(exact, x.double(), mask, causal)
    assert len(recorder.fused) == (4 if causal else 2)
    total = sum(t.square().sum() for t in wanted[1:]).sqrt()
    for value, reference in zip(found, wanted, strict=True):  # the gradient of a key's bias is rounding alone
        assert (value - reference).norm() < 1e-5 * max(reference.norm(), 1e-3 * total)


def test_bodies_of_checkpoints():
    model = seeded(Stack, checkpointed=True)
    original = copy.deepcopy(model)
    recorder = compiled(model)
    x = torch.randn(2, 7, 32)
    for value, reference in zip(
        gradients(model, x, None, True), gradients(original, x, None, True), strict=True
    ):
        torch.testing.assert_close(value, reference)
    children = [child for graph in recorder.graphs for child in graph.children()]
    fused = [n for c in children for n in c.graph.nodes if n.target is F.scaled_dot_product_attention]
    assert [node.kwargs["is_causal"] for node in fused] == [True, True]


def test_bfloat16():
    model = seeded(Stack).bfloat16()
    original, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    recorder = compiled(model)
    x = torch.randn(2, 7, 32).bfloat16()
    reference = exact(x.double(), None, True)
    assert error(model(x, None, True), reference) <= 2 * error(original(x, None, True), reference)
    assert len(recorder.fused) == 2


def test_dropout_in_training_is_left_alone_unless_its_rate_is_0():
    model = seeded(Stack)
    recorder = compiled(model, dynamic=True)
    x = torch.randn(2, 7, 32)
    model(x)
    assert len(recorder.fused) == 2
    for layer in model.layers:
        layer.dropout = 0.5
    torch.manual_seed(0)
    out = model(x)
    torch.manual_seed(0)
    assert torch.equal(out, copy.deepcopy(model)(x))
    model.eval()
    torch.testing.assert_close(model(x), copy.deepcopy(model)(x))
    assert len(recorder.fused) == 4


def returns_weights(q, k, v):
    weights = scores_of(q, k).softmax(-1)
    return weights @ v, weights


def scales_each_score(q, k, v):
    return (scores_of(q, k) * v[..., :1].mT).softmax(-1) @ v


def changes_query_between(q, k, v):
    q = q * 1.0
    weights = scores_of(q, k).softmax(-1)
    q.zero_()
    return weights @ v


def changes_keys_between(q, k, v):
    k = k * 1.0
    scores = scores_of(q, k)
    k = F.relu(k, inplace=True)
    return scores.softmax(-1) @ v + k


def fills_with_zero(q, k, v):
    return scores_of(q, k).masked_fill(q[..., :1] > 0, 0.0).softmax(-1) @ v


def keeps_top_scores(q, k, v):
    scores = scores_of(q, k)
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) - 1, -1e9).softmax(-1) @ v


def values_per_query(q, k, v):
    return torch.einsum("bhqk,bhqkd->bhqd", scores_of(q, k).softmax(-1), v.unsqueeze(2) * q.unsqueeze(3))


def sums_heads(q, k, v):
    return torch.einsum("bhqk,bhkd->bqd", scores_of(q, k).softmax(-1), v)


def rounds_scores(q, k, v):
    return scores_of(q, k).bfloat16().softmax(-1).float() @ v


def detaches_scores(q, k, v):
    return scores_of(q, k).detach().softmax(-1) @ v


def pools(q, k, v):
    """One learned query for all: no dimension of queries at all."""
    return torch.einsum("bhk,bhkd->bhd", torch.einsum("hd,bhkd->bhk", q[0, :, 0], k).softmax(-1), v)


@pytest.mark.parametrize(
    "function",
    [
        returns_weights,
        scales_each_score,
        changes_query_between,
        changes_keys_between,
        fills_with_zero,
        keeps_top_scores,
        values_per_query,
        sums_heads,
        rounds_scores,
        detaches_scores,
        pools,
    ],
)
def test_left_alone(function):
    model = Written(function)
    recorder = compiled(model)
    found, wanted = model(*inputs(7)), function(*inputs(7))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert len(recorder.graphs) == 1
    assert not recorder.fused


def viewed_directly(q, k, v):
    """The product of bmm is contiguous, and that of the fused call is not: a view would raise."""
    return (scores_of(q, k).softmax(-1) @ v).view(BATCH, -1)


def changed_through_a_view(q, k, v):
    """The view must be one, so that the result changes with it."""
    out = scores_of(q, k).softmax(-1) @ v
    out.view(-1).mul_(2)
    return out


def changed_after_a_copy(q, k, v):
    """The copy is none of the fused call's result, which the backward pass needs."""
    out = (scores_of(q, k).softmax(-1) @ v).transpose(1, 2).contiguous()
    out += q.transpose(1, 2)
    return out


def grouped_mask(q, k, v):
    """Five dimensions, and a mask that differs along two of the three of the batch."""
    q, k, v = q.view(BATCH, 2, 2, -1, WIDTH), k[:, :2], v[:, :2]
    scores = torch.einsum("bghqd,bgkd->bghqk", q, k) / 4
    hidden = (k[..., 0] > 0.5)[:, :, None, None, :]
    return torch.einsum("bghqk,bgkd->bghqd", scores.masked_fill(hidden, -1e4).softmax(-1), v)


def temperature_of_each_query(q, k, v):
    return (q @ k.mT * torch.sigmoid(q[..., :1])).softmax(-1) @ v


def keys_of_another_layout(q, k, v):
    """Channels first, as in convolutional models: the last dimension is not contiguous."""
    q, k, v = (t.mT.contiguous() for t in (q, k, v))
    return torch.einsum("bhji,bhdj->bhdi", (torch.einsum("bhdi,bhdj->bhji", q, k) / 4).softmax(2), v).mT


def shared_keys(q, k, v):
    """One head of keys and values for all (multi-query attention), by broadcasting."""
    return scores_of(q, k[:, :1]).softmax(-1) @ v[:, :1]


def one_head(q, k, v):
    return scores_of(q[0, 0], k[0, 0]).softmax(-1) @ v[0, 0]


def in_place_scale(q, k, v):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    scores *= WIDTH**-0.5
    return F.softmax(scores, -1).contiguous() @ v


@pytest.mark.parametrize(
    "function",
    [
        viewed_directly,
        changed_through_a_view,
        changed_after_a_copy,
        grouped_mask,
        temperature_of_each_query,
        keys_of_another_layout,
        shared_keys,
        one_head,
        in_place_scale,
    ],
)
@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_found(function, dynamic):
    model = Written(function)
    recorder = compiled(model, dynamic=dynamic)
    tensors = inputs(7)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    out, reference = model(*tensors), function(*wide)
    assert error(out, reference) < 1e-6
    assert out.is_contiguous() == reference.is_contiguous()
    found = torch.autograd.grad(out.square().sum(), tensors)
    wanted = torch.autograd.grad(reference.square().sum(), wide)
    assert max(map(error, found, wanted)) < 4e-6
    assert len(recorder.fused) == 1


def test_fused_calls_of_three_dimensions_get_a_fourth():
    def three(q, k, v):
        mask = torch.zeros(HEADS, 7, 7)
        return F.scaled_dot_product_attention(q[0], k[0], v[0], mask, scale=0.5)

    model = Written(three)
    recorder = compiled(model)
    assert error(model(*inputs(7)), three(*inputs(7)).double()) < 1e-6
    (call,) = recorder.fused
    assert all(of.target == "unsqueeze" for of in call.args)
    assert call.kwargs["scale"] == 0.5


def test_passes_are_noted_copied_and_run_in_order():
    calls = []

    def first(graph_module):
        calls.append("first")
        return graph_module

    def second(graph_module):
        calls.append("second")
        return graph_module

    model = Written(scores_of)
    assert passes_of(model) == ()
    for each in (first, second, first):
        add_pass(model, each)
    assert passes_of(copy.deepcopy(model)) == (second, first)
    assert "pass" not in str(model.state_dict().keys())
    recorder = Recorder()
    model.compile(backend=backend_of(model, recorder))
    model(*inputs(7)[:2])
    assert calls == ["second", "first"]
    assert len(recorder.graphs) == 1


def test_settings_of_the_compile_call_reach_the_inner_backend():
    seen = {}

    def inner(graph_module, inputs, **settings):
        seen.update(settings)
        return graph_module.forward

    model = Written(scores_of)
    model.compile(backend=backend_of(model, inner), mode="max-autotune-no-cudagraphs", options=None)
    model(*inputs(7)[:2])
    assert seen == {"mode": "max-autotune-no-cudagraphs"}


def test_the_text_runs_without_the_package(tmp_path):
    text = Path(attention_rewrite.__file__).read_text()
    assert "kernel_pytorch" not in text
    script = tmp_path / "written.py"
    script.write_text(
        text
        + """


class Model(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.mT / 2, -1) @ x


model, original, calls = Model(), Model(), []
fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, None
F.scaled_dot_product_attention = lambda *a, **k: calls.append(1) or fused(*a, **k)
torch._dynamo.allow_in_graph(F.scaled_dot_product_attention)
x = torch.randn(1, 2, 5, 4)
model.compile(backend=attention_backend("eager"))
torch.testing.assert_close(model(x), original(x))
assert calls == [1]
"""
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
