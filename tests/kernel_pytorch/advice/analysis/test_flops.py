"""FLOPs against counts by hand: a product of [n, k] and [k, m] is 2 n k m."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernel_pytorch.advice.analysis.flops import count_flops
from kernel_pytorch.advice.sample import Sample

B, N, H, D = 2, 6, 4, 8
E = H * D
SCORES = 2 * B * H * N * N * D
"""Of one of attention's products."""
sizes = st.integers(1, 9)


@settings(max_examples=15)
@given(batch=sizes, widths=st.lists(sizes, min_size=2, max_size=4), training=st.booleans())
def test_mlp(batch: int, widths: list[int], training: bool):
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    forward = [2 * batch * a * b for a, b in pairwise(widths)]
    found = count_flops(model, Sample.of(torch.randn(batch, widths[0])), training=training)
    # Backward: the gradient of each weight, and of each input but the first.
    expected = sum(forward) + sum(2 * f for f in forward) - forward[0] if training else sum(forward)
    assert found.total == expected
    assert found.by_module["0"] == forward[0] * (2 if training else 1)
    assert found.attention == 0
    assert found.by_dtype == {"float32": expected}
    assert found.remarks == ()


@settings(max_examples=15)
@given(
    batch=sizes,
    groups=st.integers(1, 2),
    wide=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    training=st.booleans(),
)
def test_convolution(batch, groups, wide, kernel, stride, padding, dilation, training):
    c_in, c_out = groups * wide[0], groups * wide[1]
    model = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups)
    side = (9 + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    # Each output value sums c_in / groups windows.
    forward = 2 * batch * c_out * side * side * (c_in // groups) * kernel * kernel
    image = torch.randn(batch, c_in, 9, 9)
    found = count_flops(model, Sample.of(image), training=False)
    assert found.total == forward
    if training and groups == 1:
        found = count_flops(model, Sample.of(image.requires_grad_()), training=True)
        assert found.total == 3 * forward


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.inputs, self.output = nn.Linear(E, 3 * E), nn.Linear(E, E)
        self.form = form

    def forward(self, x):
        q, k, v = self.inputs(x).view(B, N, 3, H, D).permute(2, 0, 3, 1, 4)
        hidden = torch.ones(N, N, dtype=torch.bool, device=x.device).triu(1)
        if self.form == "fused":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.form == "einsum":
            scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(D)
            y = torch.einsum("bhnm,bhmd->bhnd", F.softmax(scores.float(), -1).to(q.dtype), v)
        elif self.form == "written out":
            scores = q @ k.transpose(-1, -2) + hidden * -1e9
            weights = torch.exp(scores - scores.amax(-1, keepdim=True))
            y = (weights / weights.sum(-1, keepdim=True)) @ v
        else:
            scores = torch.matmul(q, k.transpose(-1, -2)).mul_(D**-0.5).masked_fill_(hidden, -math.inf)
            y = F.dropout(scores.softmax(-1), 0.1, self.training) @ v
        return self.output(y.transpose(1, 2).reshape(B, N, E))


PROJECTIONS = 2 * B * N * E * 4 * E


@pytest.mark.parametrize("form", ["fused", "by hand", "einsum", "written out"])
def test_attention(form: str):
    model, sample = Attention(form), Sample.of(torch.randn(B, N, E))
    found = count_flops(model, sample)
    assert found.total == PROJECTIONS + 2 * SCORES
    assert found.attention == 2 * SCORES
    assert found.hidden == ({"float32": SCORES} if form == "fused" else {})
    assert found.by_module == {"": found.total, "inputs": 3 * PROJECTIONS // 4, "output": PROJECTIONS // 4}

    found = count_flops(model, sample, training=True)
    # By hand two gradients for each product; fused, the scores are computed again.
    backward = (5 if form == "fused" else 4) * SCORES
    assert found.attention == 2 * SCORES + backward
    inputs, output = 3 * PROJECTIONS // 4, PROJECTIONS // 4
    assert found.total == found.attention + 2 * inputs + 3 * output  # x has no gradient
    assert found.by_module == {"": found.total, "inputs": 2 * inputs, "output": 3 * output}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent(kind: type[nn.RNNBase], gates: int, bidirectional: bool):
    time, batch, width, hidden = 5, 3, 4, 7
    directions = 2 if bidirectional else 1
    model = kind(width, hidden, num_layers=2, bidirectional=bidirectional)
    first = directions * gates * hidden * (width + hidden)
    second = directions * gates * hidden * (directions * hidden + hidden)
    found = count_flops(model, Sample.of(torch.randn(time, batch, width)))
    assert found.total == 2 * time * batch * (first + second)


def test_an_lstm_in_training():
    time, batch, width, hidden = 5, 3, 4, 7
    x = torch.randn(time, batch, width, requires_grad=True)
    found = count_flops(nn.LSTM(width, hidden), Sample.of(x), training=True)
    assert found.total == 3 * 2 * time * batch * 4 * hidden * (width + hidden)


def test_encoder_layers_count_in_inference_too():
    model = nn.TransformerEncoderLayer(E, H, 2 * E, batch_first=True).eval()
    found = count_flops(model, Sample.of(torch.randn(B, N, E)))
    assert found.total == PROJECTIONS + 2 * SCORES + 2 * 2 * B * N * E * 2 * E
    assert found.attention == 2 * SCORES
    assert torch.backends.mha.get_fastpath_enabled()


class Routed(nn.Module):
    """Softmaxes that are no attention: a router's and a classifier's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        mixed = self.head(weights * self.expert(x))
        return F.cross_entropy(mixed, torch.zeros(len(x), dtype=torch.long, device=x.device))


def test_other_softmaxes_are_no_attention():
    found = count_flops(Routed(), Sample.of(torch.randn(5, 4)), training=True)
    assert found.total > 0
    assert found.attention == 0


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x):
        return self.left(x) + checkpoint(self.right, x, use_reentrant=False)


def test_backward_belongs_to_the_module_of_the_forward():
    """And what checkpointing computes again, here the first product of the right branch, to its module."""
    found = count_flops(Branches(), Sample.of(torch.randn(5, 4)), training=True)
    product = 2 * 5 * 4 * 4
    assert found.by_module == {
        "left": 2 * product,
        "right.0": 3 * product,
        "right.2": 3 * product,
        "right": 6 * product,
        "": 8 * product,
    }


def test_a_compiled_model_counts_as_it_is_written():
    model = torch.compile(nn.Linear(3, 4), backend="eager")
    assert count_flops(model, Sample.of(torch.randn(2, 3))).total == 2 * 2 * 3 * 4
    model = nn.Sequential(nn.Linear(3, 4))
    model.compile(backend="eager")
    assert count_flops(model, Sample.of(torch.randn(2, 3))).by_module == {"": 48, "0": 48}


class Item(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.drop(self.layer(x)) * x.sum().item())


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_needs_numbers_runs_on_a_copy(training: bool):
    model, sample = Item(), Sample.of(torch.randn(5, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seed = torch.get_rng_state()
    assert count_flops(model, sample, training=training).total == 160 * (2 if training else 1)
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_meta_models_are_counted():
    with torch.device("meta"):
        model, x = nn.Linear(3, 4), torch.empty(2, 3)
    assert count_flops(model, Sample.of(x)).total == 2 * 2 * 3 * 4


def test_products_with_vectors():
    class Vectors(nn.Module):
        def forward(self, a, v):
            return a @ v, v @ v, torch.addmv(v, a, v)

    assert count_flops(Vectors(), Sample.of((torch.randn(4, 4), torch.randn(4)))).total == 32 + 8 + 32


def test_what_is_not_counted_is_said():
    with torch.library._scoped_library("advice_flops", "FRAGMENT") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")

        class Custom(nn.Module):
            def forward(self, x):
                return torch.ops.advice_flops.double(x) @ x

        found = count_flops(Custom(), Sample.of(torch.randn(3, 3)))
    assert found.total == 2 * 27
    assert found.remarks == ("advice_flops::double is not counted",)


def test_the_models_exception_comes_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_flops(nn.Linear(3, 4), Sample.of(torch.randn(2, 5)))
    with pytest.raises(ValueError, match="needs a loss"):
        count_flops(nn.ReLU(), Sample.of(torch.randn(2)), training=True)
    assert torch.backends.mha.get_fastpath_enabled()
