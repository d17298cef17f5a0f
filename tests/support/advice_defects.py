"""Small models with exactly one defect each, and clean ones that look alike.

The line of a defect ends in ``# defect``. ``recorded`` are the facts that a case's findings need and that
only the analysis of the whole process can give; all else is found by running the model.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernel_pytorch.advice.facts import AttentionSite, Options
from kernel_pytorch.advice.prove.task import Task
from kernel_pytorch.advice.sample import Sample

WIDTH, TOKENS = 16, 24
LOG = logging.getLogger("advice_defects")


def tokens() -> torch.Tensor:
    """[2, tokens, width]"""
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def images() -> torch.Tensor:
    """[2, 8, 10, 10]"""
    return torch.randn(2, 8, 10, 10, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and what is wrong with it."""

    model: Callable[[], nn.Module]
    kind: str = ""
    """Of the finding; "": the model is clean."""
    place: str = ""
    """Where the place is not the marked line of the model's class."""
    sample: Callable[[], torch.Tensor] = tokens
    training: bool = False
    optimizer: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer] | None = None
    memory_bytes: int | None = None
    """The limit."""
    recorded: dict[str, Any] = field(default_factory=dict)
    """Facts, see ``advice_facts.facts``."""

    @property
    def name(self) -> str:
        """Of the model's class."""
        return self.model.__name__

    def expected(self) -> str:
        """FILE:LINE of the defect, or "" of the process."""
        if self.place or self.kind in ("too many threads", "no C++ compiler"):
            return self.place
        return f"{_file()}:{_line(self.model)}"

    def task(self) -> Task:
        """To observe, in the mode of the case."""
        torch.manual_seed(0)
        return Task(
            model=self.model().train(self.training),
            sample=Sample.of(self.sample()),
            options=Options(training=self.training, memory_bytes=self.memory_bytes),
            loss=lambda outputs, inputs: outputs.square().mean(),
            optimizer=self.optimizer,
        )


def _file() -> str:
    file = Path(__file__)
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _line(of: Any) -> int:
    lines, first = inspect.getsourcelines(of)
    return next(first + at for at, line in enumerate(lines) if line.rstrip().endswith("# defect"))


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)


class Item(Linear):
    def forward(self, x):
        largest = x.abs().max().item()  # defect
        return self.linear(x / largest)


class ToList(Linear):
    def forward(self, x):
        scale = x.mean((0, 1)).tolist()  # defect
        return self.linear(x) * scale[0]


class IntOfTensor(Linear):
    def forward(self, x):
        count = int((x > 0).sum())  # defect
        return self.linear(x) / count


class Print(Linear):
    def forward(self, x):
        y = self.linear(x)
        print(end="")  # defect
        return F.relu(y)


class PrintAlone(Linear):
    """In a function that has no operators."""

    def report(self):
        print(end="")  # defect

    def forward(self, x):
        self.report()
        return self.linear(x)


class Logging(Linear):
    def forward(self, x):
        LOG.info("input of %s", x.shape)  # defect
        return self.linear(x)


class Branch(Linear):
    def forward(self, x):
        if x.sum() > 0:  # defect
            x = x * 2
        return self.linear(x)


class WhileBranch(Linear):
    def forward(self, x):
        while x.abs().max() > 1:  # defect
            x = x / 2
        return self.linear(x)


class SelectedRows(Linear):
    def forward(self, x):
        return self.linear(x[x[..., 0] > 0]).sum()  # defect


class Clock(Linear):
    def forward(self, x):
        self.began = time.perf_counter()  # defect
        return self.linear(x)


class Counter(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1  # defect
        return self.linear(x) + 0 * self.calls


class CacheByLength(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.masks = {}

    def forward(self, x):
        n = x.shape[1]
        if n not in self.masks:  # defect
            self.masks[n] = torch.ones(n, n).tril()
        return self.masks[n] @ self.linear(x)


class PositionList(Linear):
    def forward(self, x):
        positions = torch.tensor([math.log1p(n) for n in range(x.shape[1])])  # defect
        return self.linear(x) + positions[:, None]


class Annealed(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x):
        self.temperature = self.temperature * 0.9
        return F.layer_norm(self.linear(x), (WIDTH,), eps=1e-6 * self.temperature)  # defect


class ToCpu(Linear):
    def forward(self, x):
        lengths = (x[..., 0] > -9).sum(1).cpu()  # defect
        return self.linear(x) / lengths[:, None, None]


class AssertFinite(Linear):
    def forward(self, x):
        y = self.linear(x)
        assert torch.isfinite(y).all()  # defect
        return y


class HandAttention(Linear):
    def forward(self, x):
        scores = x @ x.transpose(1, 2) / math.sqrt(WIDTH)  # defect
        return self.linear(scores.softmax(-1) @ x)


class UnfusedAttention(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(TOKENS, TOKENS))

    def forward(self, x):
        n = x.shape[1]
        bias = self.bias[:n, :n]
        return F.scaled_dot_product_attention(x, x, self.linear(x), attn_mask=bias)  # defect


class DoubleSoftmax(Linear):
    def forward(self, x):
        y = self.linear(x).double()  # defect
        return y.softmax(-1).float()


class DoubleTable(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, WIDTH, dtype=torch.float64))

    def forward(self, x):
        y = self.linear(x) * self.table  # defect
        return y.to(x.dtype)


class DropoutAlways(Linear):
    def forward(self, x):
        return F.dropout(self.linear(x), 0.1)  # defect


class DropoutLeftOn(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def train(self, mode=True):
        super().train(mode)
        self.dropout.train()
        return self

    def forward(self, x):
        return self.dropout(self.linear(x))  # defect


class NoisyInEval(Linear):
    def forward(self, x):
        return self.linear(x + torch.randn_like(x))  # defect


class KeepsState(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):  # defect
        self.seen.add_(1)
        return self.linear(x) * self.seen


class LoopOverTokens(Linear):
    def forward(self, x):
        state = torch.zeros(x.shape[0], WIDTH)
        for at in range(x.shape[1]):  # defect
            state = torch.tanh(self.linear(x[:, at]) + state)
        return state


class Cell(Linear):
    def forward(self, token, state):
        return torch.tanh(self.linear(token) + state)


class LoopOverCells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x):
        state, states = x[:, 0], []
        for token in x.unbind(1):  # defect
            state = self.cell(token, state)
            states.append(state)
        return torch.stack(states, 1)


class TokensOneByOne(Linear):
    def forward(self, x):
        return torch.stack([self.linear(token) for token in x.unbind(1)], 1)  # defect


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 20)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(20))

    def forward(self, x):
        weights, out = self.gate(x).softmax(-1), torch.zeros_like(x)
        for at, expert in enumerate(self.experts):  # defect
            out = out + weights[..., at : at + 1] * expert(x)
        return out


class TransposedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)

    def forward(self, x):
        return x @ self.weight.t().contiguous()  # defect


class CastWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(2 * WIDTH, WIDTH).half())

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))  # defect


class NeedlessContiguous(Linear):
    def forward(self, x):
        y = self.linear(x)
        other = y.transpose(1, 2).contiguous()  # defect
        return y @ other


class CopiedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(TOKENS, 8), nn.Linear(TOKENS, 8)

    def forward(self, x):
        x = x.transpose(1, 2)
        y = self.first(x)  # defect
        return y * self.second(x)


class RebuiltMask(Linear):
    def forward(self, x):
        n = x.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).tril()  # defect
        return (x @ self.linear(x).transpose(1, 2)).masked_fill(~mask, 0.0)


class RebuiltComparison(Linear):
    def forward(self, x):
        at = torch.arange(x.shape[1])  # defect
        near = (at[:, None] - at[None, :]).abs() < 4
        return (x @ self.linear(x).transpose(1, 2)) * near


class RebuiltTable(Linear):
    def forward(self, x):
        at = torch.arange(x.shape[1])[:, None]  # defect
        table = torch.sin(at * torch.arange(WIDTH) / WIDTH)
        return self.linear(x + table)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = self.first(x)  # defect
        return self.second(x.relu())


class ChannelsFirstAgain(Convolutions):
    """In channels_last but for the second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        x = torch.cat([part.clone(memory_format=torch.contiguous_format) for part in x.split(1)])
        return self.second(x)  # defect


class Wide(Linear):
    def forward(self, x):
        return self.linear(x)


class TooLarge(Linear):  # defect
    def forward(self, x):
        return self.linear(x)


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))


class DeepStack(nn.Module):
    """A loop over layers, each of which needs the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(20))

    def forward(self, x):
        for layer in self.layers:
            x = x + F.gelu(layer(x))
        return x


class FusedAttention(nn.Module):
    """Heads are merged by a copy that is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, n, width = x.shape
        query, key, value = self.project(x).view(batch, n, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, n, width))


class ChannelsLast(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Where(Linear):
    def forward(self, x):
        return self.linear(torch.where(x.sum() > 0, x * 2, x))


class KeptMask(Linear):
    """One comparison of positions, which is no matrix, and a mask that is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())

    def forward(self, x):
        n = x.shape[1]
        first = (torch.arange(n) == 0).to(x.dtype)
        scores = x @ self.linear(x).transpose(1, 2)
        return scores.masked_fill(~self.mask[:n, :n], 0.0) + first


class FilledResult(Linear):
    """Zeros that results are written to are no constant."""

    def forward(self, x):
        out = torch.zeros(x.shape[0], x.shape[1], WIDTH)
        out[:, 1:] = self.linear(x)[:, :-1]
        return out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.layers(x)


class LazyCache(Linear):
    """Made in the first call, and cut to the length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.sin(torch.arange(TOKENS)[:, None] * torch.arange(WIDTH))
        return self.linear(x + self.table[: x.shape[1]])


class DoubleThroughout(Linear):
    """All of it is meant to be float64."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, x):
        return self.linear(x.double())


class TransposedConvolution(nn.Module):
    """What reads the copy takes no other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(self.mix(x.transpose(1, 2).contiguous()).transpose(1, 2))


class Dropout(nn.Sequential):
    """On in training, off in eval."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 32), nn.Dropout(0.1), nn.Linear(32, WIDTH))


def slow_adam(parameters):  # defect
    return torch.optim.AdamW(parameters, foreach=True)


def fused_adam(parameters):
    return torch.optim.AdamW(parameters, fused=True)


def channels_last_images() -> torch.Tensor:
    return images().contiguous(memory_format=torch.channels_last)


def _site(case: Callable[[], nn.Module], fused: bool, why: str = "") -> dict[str, Any]:
    call = "F.scaled_dot_product_attention(x, x, x)"
    place = f"{_file()}:{_line(case)}"
    site = AttentionSite(
        place=place, paths=("",), fused=fused, scores_bytes=4 * 2 * TOKENS**2, call=call, why=why
    )
    return {"attention": (site,)}


_BREAKS = (
    Item, ToList, IntOfTensor, Print, PrintAlone, Logging, Branch, WhileBranch, SelectedRows, Clock,
)  # fmt: skip
DEFECTS = (
    *(Case(model=model, kind="graph break") for model in _BREAKS),
    *(Case(model=model, kind="recompiling") for model in (Counter, CacheByLength, PositionList, Annealed)),
    *(Case(model=model, kind="host sync") for model in (ToCpu, AssertFinite)),
    Case(model=HandAttention, kind="attention by hand", recorded=_site(HandAttention, fused=False)),
    Case(
        model=UnfusedAttention,
        kind="attention unfused",
        training=True,
        recorded=_site(UnfusedAttention, fused=True, why="the mask needs a gradient"),
    ),
    *(Case(model=model, kind="float64") for model in (DoubleSoftmax, DoubleTable)),
    *(
        Case(model=model, kind="results differ")
        for model in (DropoutAlways, DropoutLeftOn, NoisyInEval, KeepsState)
    ),
    *(Case(model=m, kind="Python loop") for m in (LoopOverTokens, LoopOverCells, TokensOneByOne, Experts)),
    *(
        Case(model=model, kind="copy in each call")
        for model in (TransposedWeight, CastWeight, NeedlessContiguous, CopiedTwice)
    ),
    *(
        Case(model=model, kind="constant rebuilt in each call")
        for model in (RebuiltMask, RebuiltComparison, RebuiltTable)
    ),
    *(
        Case(model=model, kind="convolution layout", sample=images)
        for model in (Convolutions, ChannelsFirstAgain)
    ),
    Case(
        model=Wide,
        kind="slow optimizer",
        place=f"{_file()}:{_line(slow_adam)}",
        training=True,
        optimizer=slow_adam,
        recorded={"optimizer": "AdamW foreach"},
    ),
    Case(
        model=TooLarge,
        kind="training will not fit",
        memory_bytes=1000,
        training=True,
        optimizer=fused_adam,
        recorded={
            "place": f"{_file()}:{_line(TooLarge)}",
            "optimizer": "AdamW fused",
            "memory_limit": 1000,
            "peak": 9000,
        },
    ),
    Case(model=Perceptron, kind="too many threads", recorded={"threads": 8}),
    Case(model=Perceptron, kind="no C++ compiler", recorded={"compiler_missing": "g++ is not installed"}),
)
CLEAN = (
    *(
        Case(model=model)
        for model in (
            Perceptron, DeepStack, FusedAttention, Where, KeptMask, FilledResult, Encoder, LazyCache,
            DoubleThroughout, TransposedConvolution, Dropout,
        )
    ),
    Case(model=ChannelsLast, sample=channels_last_images),
    Case(model=Dropout, training=True, optimizer=fused_adam, recorded={"optimizer": "AdamW fused"}),
    Case(model=Encoder, training=True, optimizer=fused_adam, recorded={"optimizer": "AdamW fused"}),
)  # fmt: skip
