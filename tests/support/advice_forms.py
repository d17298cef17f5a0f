"""Twenty ways to write attention, and eight functions that look like it and are another.

Each is a module that takes queries, keys and values and returns as many values, all of
[batch, heads, length, width].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kernel_pytorch.advice.strategy.attention_rewrite import attention_backend

BATCH, HEADS, WIDTH = 2, 4, 8
LONGEST = 128
INFINITY = float("inf")


class Recorder:
    """A backend that runs a graph as it is, and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

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


@dataclass(frozen=True)
class Form:
    """A way to write attention."""

    name: str
    make: Callable[[], nn.Module]
    causal: bool = False
    """Whether its mask is the causal triangle at every length."""
    trains: bool = True
    """Whether it is rewritten in training too."""


class Written(nn.Module):
    """Attention by a function of queries, keys and values."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def matmul_scaled_after(q, k, v):
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    return torch.matmul(F.softmax(scores, dim=-1), v)


def scaled_query(q, k, v):
    q = q * q.shape[-1] ** -0.5
    return (q @ k.mT).softmax(-1) @ v


def einsum(q, k, v):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * WIDTH**-0.5
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, dim=-1), v)


def einsum_length_first(q, k, v):
    """Flax's and GPT-J's layout: heads behind the length."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = torch.einsum("...qhd,...khd->...hqk", q, k) / WIDTH**0.5
    return torch.einsum("...hqk,...khd->...qhd", scores.softmax(dim=-1), v).transpose(1, 2)


def bmm_joined_heads(q, k, v):
    """Three dimensions, batch and heads joined, as in fairseq."""
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    weights = F.softmax(torch.bmm(q * d**-0.5, k.transpose(1, 2)), dim=-1)
    return torch.bmm(weights, v).view(b, h, n, d)


def baddbmm_alibi(q, k, v):
    """BLOOM: the bias of ALiBi and the scale in one product, then a mask on four dimensions."""
    b, h, n, d = q.shape
    slopes = torch.tensor([2.0 ** -(i + 1) for i in range(h)], dtype=q.dtype)
    alibi = (slopes[:, None, None] * torch.arange(n)).to(q.dtype)
    bias = alibi.expand(b, h, 1, n).reshape(b * h, 1, n)
    scores = torch.baddbmm(
        bias, q.reshape(b * h, n, d), k.reshape(b * h, n, d).mT, beta=1.0, alpha=WIDTH**-0.5
    )
    weights = torch.softmax(scores, -1)
    return torch.bmm(weights, v.reshape(b * h, n, d)).view(b, h, n, d)


def inner_query_mask(q, k, v):
    """A padding mask that is computed from the inputs, filled with a finite number."""
    padding = (k[:, :1, :, 0] > 1.0).unsqueeze(1)
    scores = (q @ k.transpose(2, 3) * 0.25).masked_fill(padding, -1e9)
    return scores.softmax(-1) @ v


def triangle_of_ones(q, k, v):
    n = q.size(-2)
    scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH)
    mask = torch.triu(torch.ones(n, n, dtype=torch.bool), diagonal=1)
    return F.softmax(scores.masked_fill(mask, -INFINITY), dim=-1) @ v


def additive_triangle(q, k, v):
    n = q.size(-2)
    mask = torch.full((n, n), -INFINITY, dtype=q.dtype).triu(1)
    return torch.softmax(q @ k.transpose(-1, -2) * WIDTH**-0.5 + mask, -1) @ v


def where_of_ranges(q, k, v):
    """GPT-2 and later: torch.where with the lowest number; positions compared."""
    position = torch.arange(q.size(-2))
    seen = position[None, :] <= position[:, None]
    scores = q @ k.transpose(-1, -2) / torch.sqrt(torch.tensor(float(WIDTH)))
    lowest = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
    return F.softmax(torch.where(seen, scores, lowest), dim=-1) @ v


class TriangleBuffer(nn.Module):
    """nanoGPT: a buffer of the greatest length, sliced; dropout in a model that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self.register_buffer("mask", torch.tril(torch.ones(LONGEST, LONGEST)).view(1, 1, LONGEST, LONGEST))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.size(-2)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :n, :n] == 0, -INFINITY)
        return self.dropout(F.softmax(scores, dim=-1)) @ v


class MaskInPlaceThenScale(nn.Module):
    """Raschka's book: the mask in place, the scale after it, nn.Softmax, dropout in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(0.5).eval()
        self.register_buffer("mask", torch.triu(torch.ones(LONGEST, LONGEST), diagonal=1))

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.dropout.eval()
        return self

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.size(-2)
        scores = q @ k.transpose(2, 3)
        scores.masked_fill_(self.mask.bool()[:n, :n], -torch.inf)
        return self.dropout(self.softmax(scores / WIDTH**0.5)) @ v


def manual_softmax(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH)
    powers = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return powers / powers.sum(dim=-1, keepdim=True) @ v


def naive_softmax(q, k, v):
    powers = torch.exp(torch.einsum("bhid,bhjd->bhij", q, k) * WIDTH**-0.5)
    return (powers / powers.sum(-1, keepdim=True)) @ v


def softmax_in_float32(q, k, v):
    """Llama: an additive mask of the lowest number, and a softmax that is cast up and back."""
    n = q.size(-2)
    mask = torch.full((n, n), torch.finfo(q.dtype).min, dtype=q.dtype)
    mask = torch.triu(mask, diagonal=1)[None, None, :, :].expand(q.size(0), 1, n, n)
    scores = torch.matmul(q, k.transpose(2, 3)) * WIDTH**-0.5 + mask
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.matmul(F.softmax(scores, dim=-1, dtype=wide).to(q.dtype), v)


def repeated_heads(q, k, v):
    """Grouped queries: two heads of keys, each repeated."""
    k, v = (t[:, :2].repeat_interleave(2, dim=1) for t in (k, v))
    return torch.softmax(q @ k.transpose(-2, -1) / WIDTH**0.5, dim=-1) @ v


def grouped_einsum(q, k, v):
    """Grouped queries in five dimensions, nothing repeated."""
    b, h, n, d = q.shape
    q = q.view(b, 2, h // 2, n, d)
    scores = torch.einsum("bghqd,bgkd->bghqk", q, k[:, :2]) * d**-0.5
    out = torch.einsum("bghqk,bgkd->bghqd", scores.softmax(-1), v[:, :2])
    return out.reshape(b, h, n, d)


def transposed_scores(q, k, v):
    """Keys by queries, softmax over the keys, which are the last but one."""
    weights = torch.softmax(k @ q.transpose(-2, -1) * WIDTH**-0.5, dim=-2)
    return weights.transpose(-2, -1) @ v


def split_mask(q, k, v):
    """BART: products on joined heads, a mask on four dimensions between."""
    b, h, n, d = q.shape
    padding = (k[:, 0, :, 0] > 1.0)[:, None, None, :]
    scores = torch.bmm(q.reshape(b * h, n, d) * d**-0.5, k.reshape(b * h, n, d).transpose(1, 2))
    scores = scores.view(b, h, n, n).masked_fill(padding, -INFINITY).view(b * h, n, n)
    return torch.bmm(F.softmax(scores, dim=-1), v.reshape(b * h, n, d)).view(b, h, n, d)


class LearnedTemperature(nn.Module):
    """A temperature for each head, and a key-padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(
            torch.rand(HEADS, 1, 1, generator=torch.Generator().manual_seed(1)) + 0.5
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        padding = k[:, :1, None, :, 0] > 1.0
        scores = q @ k.transpose(-2, -1) * self.temperature
        return scores.masked_fill(padding, torch.finfo(q.dtype).min).softmax(dim=-1) @ v


FORMS = (
    *(
        Form(
            function.__name__,
            lambda function=function: Written(function),
            causal,
            trains=function is not baddbmm_alibi,
        )
        for function, causal in (
            (matmul_scaled_after, False),
            (scaled_query, False),
            (einsum, False),
            (einsum_length_first, False),
            (bmm_joined_heads, False),
            (baddbmm_alibi, False),
            (inner_query_mask, False),
            (triangle_of_ones, True),
            (additive_triangle, True),
            (where_of_ranges, True),
            (manual_softmax, False),
            (naive_softmax, False),
            (softmax_in_float32, True),
            (repeated_heads, False),
            (grouped_einsum, False),
            (transposed_scores, False),
            (split_mask, False),
        )
    ),
    Form("triangle_buffer", TriangleBuffer, True),
    Form("mask_in_place_then_scale", MaskInPlaceThenScale, True),
    Form("learned_temperature", LearnedTemperature),
)


def softmax_over_queries(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(WIDTH), dim=-2) @ v


def scores_used_again(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH)
    return scores.softmax(-1) @ v + scores.mean(-1, keepdim=True)


def sigmoid_weights(q, k, v):
    return torch.sigmoid(q @ k.transpose(-2, -1) / math.sqrt(WIDTH)) @ v


def masked_after_softmax(q, k, v):
    n = q.size(-2)
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(WIDTH), dim=-1)
    return weights.masked_fill(torch.ones(n, n).triu(1) == 1, 0.0) @ v


def relu_weights(q, k, v):
    weights = F.relu(q @ k.transpose(-2, -1) / math.sqrt(WIDTH))
    return weights / (weights.sum(-1, keepdim=True) + 1) @ v


def renormalised(q, k, v):
    """A softmax with one more key, of score 0 and value 0: exp / (1 + sum)."""
    powers = torch.exp(q @ k.transpose(-2, -1) / math.sqrt(WIDTH))
    return powers / (1 + powers.sum(-1, keepdim=True)) @ v


def two_softmaxes(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH)
    return (scores.softmax(-1) - 0.5 * (2 * scores).softmax(-1)) @ v


def multiplied_mask(q, k, v):
    """Scores that are multiplied by the mask: those hidden count as 0."""
    n = q.size(-2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH) * torch.ones(n, n).tril()
    return scores.softmax(-1) @ v


LOOK_ALIKES = tuple(
    Form(function.__name__, lambda function=function: Written(function))
    for function in (
        softmax_over_queries,
        scores_used_again,
        sigmoid_weights,
        masked_after_softmax,
        relu_weights,
        renormalised,
        two_softmaxes,
        multiplied_mask,
    )
)
