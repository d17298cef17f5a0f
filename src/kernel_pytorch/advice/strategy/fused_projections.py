"""Linear layers that are given the same tensor, computed as one product. Imports torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..analysis.patterns import shared_input_linears
from ..analysis.structure import watch_copy
from ..facts import Expectation, ModelFacts
from ..sample import Sample
from .listing import assigned, text_of
from .protocol import Base


class FirstLinear(nn.Linear):
    """The first of linear layers that are given the same tensor: it computes all of them."""

    sizes: list[int]
    later: list[Any]
    joined: Any

    def parts(self, x: Tensor) -> Any:
        if self.joined is not None:
            return torch.split(self.joined(x), self.sizes, -1)
        layers = [self, *self.later]
        weight = torch.cat([layer.weight for layer in layers])
        bias = None if self.bias is None else torch.cat([layer.bias for layer in layers])
        return torch.split(F.linear(x, weight, bias), self.sizes, -1)

    def forward(self, x: Tensor) -> Any:
        parts = self.parts(x)
        for layer, part in zip(self.later, parts[1:], strict=True):
            layer.ready = (x, layer.state_of(x), part)
        return parts[0]


class LaterLinear(nn.Linear):
    """Takes what the first computed, if it is given the same tensor."""

    first: list[Any]
    number: int
    ready: Any

    @staticmethod
    def state_of(x: Tensor) -> tuple[Any, ...]:
        unwatched = torch.compiler.is_compiling() or x.is_inference()
        return (torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type), unwatched or x._version)

    def forward(self, x: Tensor) -> Any:
        ready, self.ready = self.ready, None
        if ready is not None and ready[0] is x and ready[1] == self.state_of(x):
            return ready[2]
        return self.first[0].parts(x)[self.number]


def fuse_linears(model: nn.Module, groups: list[tuple[str, ...]]) -> None:
    """Compute each group of linear layers, named by their paths, as one product.

    In training they keep their parameters, which are joined in each call; else they are joined now.
    """
    for group in groups:
        layers: list[Any] = [model.get_submodule(path) for path in group]
        first, sizes = layers[0], [layer.out_features for layer in layers]
        joined: Any = None
        trainable = first.weight.requires_grad
        if not first.training:
            joined = nn.Linear(first.in_features, sum(sizes), first.bias is not None, device="meta").eval()
            for name, _ in list(joined.named_parameters()):
                values = torch.cat([getattr(layer, name).detach() for layer in layers])
                joined.register_parameter(name, nn.Parameter(values, requires_grad=trainable))
                for layer in layers:
                    layer.register_parameter(name, None)
        first.__class__, first.sizes, first.later, first.joined = FirstLinear, sizes, layers[1:], joined
        for number, layer in enumerate(layers[1:], 1):
            layer.__class__, layer.first, layer.number, layer.ready = LaterLinear, [first], number, None


class FusedProjections(Base):
    """Query, key and value as one product, also gate and up projections."""

    name = "fused projections"

    def __init__(self) -> None:
        self._groups: list[tuple[str, ...]] = []

    def applies(self, facts: ModelFacts) -> Expectation | str:
        groups = facts.structure.shared_input_linears
        if not groups:
            return "no two linear layers of one parent are given the same tensor"
        layers = sum(map(len, groups))
        return Expectation(
            gain=1.1,
            reason=f"{layers} linear layers become {len(groups)}; 1.1 to 1.3 where three became one",
            seconds=3.0,
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """
        Raises:
            ValueError: a call of a copy of the model shows no such layers.
        """
        watched = watch_copy(model, sample)
        self._groups = [] if watched is None else list(shared_input_linears(model, watched))
        if not self._groups:
            raise ValueError("no two linear layers of one parent are given the same tensor")
        fuse_linears(model, self._groups)
        return model

    def source(self) -> list[str]:
        return [
            "import torch",
            "from typing import Any",
            "from torch import Tensor, nn",
            "from torch.nn import functional as F",
            *text_of(FirstLinear),
            *text_of(LaterLinear),
            *text_of(fuse_linears),
            *assigned("groups", self._groups),
            "fuse_linears(model, groups)",
        ]
