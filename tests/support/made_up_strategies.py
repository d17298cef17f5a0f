"""A model whose calls take the seconds that it is told, on a false clock, and strategies that change it.

A strategy here is a function of a model, wrapped by :func:`strategy`. What the model computes is real; only
its time is made up, so nothing here depends on the speed of the machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kernel_pytorch.advice.facts import Expectation
from kernel_pytorch.advice.strategy.protocol import Base


class FalseClock:
    """Time passes only when something says that it took time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: Any) -> FalseClock:
        return self


class Model(nn.Module):
    """[b, n, 8] -> [b, n, 8], in 10 ms by the clock."""

    def __init__(self, clock: FalseClock) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.clock, self.seconds = clock, 0.01
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("scale", torch.ones(8))
        self.applied: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.now += self.seconds
        return self.compute(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.gelu(self.first(x))) * self.scale


class MadeUp(Base):
    """A strategy that applies a function to the model."""

    def __init__(self, change: Any, name: str = "", **attributes: Any) -> None:
        self.change, self.name = change, name or change.__name__
        for key, value in attributes.items():
            setattr(self, key, value)

    def applies(self, facts: Any) -> Expectation:
        return Expectation(gain=2.0, reason="made up", seconds=1.0)

    def apply(self, model: Any, sample: Any) -> nn.Module:
        changed = self.change(model)
        return model if changed is None else changed

    def source(self) -> list[str]:
        return [f"model = {self.name}(model)"]


def replace_compute(model: Model, compute: Any, seconds: float = 0.005) -> None:
    """Let a model compute ``compute(old, x)``, and say that it takes ``seconds``."""
    old = type(model).compute.__get__(model) if "compute" not in vars(model) else model.compute
    model.compute = lambda x: compute(old, x)
    model.seconds = seconds


def twice_as_fast(model: Model) -> None:
    model.seconds /= 2


def three_times_slower(model: Model) -> None:
    model.seconds *= 3


def a_little_slower(model: Model) -> None:
    model.seconds *= 1.1


def two_percent_faster(model: Model) -> None:
    model.seconds /= 1.02


def impossibly_fast(model: Model) -> None:
    model.seconds = 1e-5


def ten_percent_off(model: Model) -> None:
    replace_compute(model, lambda old, x: 1.1 * old(x))


def wrong_gradient(model: Model) -> None:
    """One of four gradients is 10 % too large."""
    model.seconds /= 2
    model.first.bias.register_hook(lambda gradient: 1.1 * gradient)


def wrong_input_gradient(model: Model) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return 1.1 * gradient

    replace_compute(model, lambda old, x: old(Wrong.apply(x)))


def changes_a_buffer(model: Model) -> None:
    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        outputs = old(x)
        model.scale.mul_(1.001)
        return outputs

    replace_compute(model, compute)


def remembers_by_address(model: Model) -> None:
    known: dict[int, torch.Tensor] = {}

    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in known:
            known[x.data_ptr()] = old(x)
        return known[x.data_ptr()]

    replace_compute(model, compute)


def remembers_the_weights(model: Model) -> None:
    """Right until the parameters move."""
    weight = model.second.weight.detach().clone()

    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        moved = model.second.weight - model.second.weight.detach() + weight
        return F.linear(F.gelu(model.first(x)), moved, model.second.bias) * model.scale

    replace_compute(model, compute)


def fast_at_first(model: Model) -> None:
    """A tenth of the time for eight calls, then three times as much."""
    calls = 0

    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        model.seconds = 0.001 if calls < 8 else 0.03
        return old(x)

    replace_compute(model, compute, 0.001)


def right_at_first(model: Model) -> None:
    """Right for twenty calls: what is compared, but not what is timed."""
    calls = 0

    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return old(x) if calls < 20 else 2 * old(x)

    replace_compute(model, compute)


def right_at_its_length(model: Model) -> None:
    replace_compute(model, lambda old, x: old(x) if x.shape[1] == 6 else 2 * old(x))


def overwrites_its_outputs(model: Model) -> None:
    """As CUDA graphs do."""
    space = torch.empty(2, 6, 8)

    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        return space.copy_(old(x)) if x.shape == space.shape else old(x)

    replace_compute(model, compute)


def loses_a_parameter(model: Model) -> None:
    model.seconds /= 2
    bias = model.second.bias.detach().clone()
    model.second.register_parameter("bias", None)
    model.second.register_buffer("other", bias)
    replace_compute(
        model, lambda old, x: (model.second(F.gelu(model.first(x))) + model.second.other) * model.scale
    )


def in_half_precision(model: Model) -> None:
    replace_compute(model, lambda old, x: old(x).bfloat16().float())


def raises_when_applied(model: Model) -> None:
    raise RuntimeError("no kernel for this model\nand a second line")


def raises_when_called(model: Model) -> None:
    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not this shape")

    replace_compute(model, compute)


def ends_the_process(model: Model) -> None:
    def compute(old: Any, x: torch.Tensor) -> torch.Tensor:
        raise SystemExit(3)

    replace_compute(model, compute)


def takes_an_hour(model: Model) -> None:
    model.seconds = 3600.0
