"""bfloat16: in products, or all through. Imports torch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..facts import Expectation, Level, ModelFacts
from ..sample import Sample
from .listing import text_of
from .protocol import Base
from .wrapping import call_between, call_within


def as_bfloat16(tree: Any) -> Any:
    """float32 tensors in any nesting, in bfloat16."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.bfloat16() if t.dtype == torch.float32 else t, tree)


def as_float32(tree: Any) -> Any:
    """bfloat16 tensors in any nesting, in float32."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, tree)


def unchanged(tree: Any) -> Any:
    """What it is given."""
    return tree


_IMPORTS = [
    "import functools",
    "import torch",
    "from collections.abc import Callable",
    "from typing import Any",
    "from torch import nn",
    "from torch.utils import _pytree as pytree",
]


class _Bfloat16(Base):
    level: Level = "aggressive"
    lossless = False

    def applies(self, facts: ModelFacts) -> Expectation | str:
        if not facts.bytes_by_dtype.get("float32"):
            return "the model has no float32 weights"
        ratio = facts.structure.bfloat16_ratio
        if ratio.value is None:
            return f"it is not known how fast bfloat16 products are: {ratio.why}"
        if ratio.value >= 1:
            how = f"{ratio.value:.0f} times" if ratio.value >= 1.5 else "about"
            return f"a 256 x 256 product takes {how} as long as in float32"
        return Expectation(
            gain=max(min(1 / ratio.value, 2.0), 1.05),
            reason=f"a 256 x 256 product takes {ratio.value:.2g} of the time in float32; error about 0.005",
            seconds=4.0,
        )


class Autocast(_Bfloat16):
    """Products in bfloat16, sums and norms in float32, and outputs in float32."""

    name = "bfloat16 autocast"

    def __init__(self) -> None:
        self._device = "cpu"

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        tensor = next(model.parameters(), None)
        self._device = "cpu" if tensor is None else tensor.device.type
        call_within(model, functools.partial(torch.autocast, self._device, dtype=torch.bfloat16))
        call_between(model, unchanged, as_float32)
        return model

    def source(self) -> list[str]:
        return [
            *_IMPORTS,
            *text_of(as_float32),
            *text_of(unchanged),
            *text_of(call_within),
            *text_of(call_between),
            f"autocast = functools.partial(torch.autocast, {self._device!r}, dtype=torch.bfloat16)",
            "call_within(model, autocast)",
            "call_between(model, unchanged, as_float32)",
        ]


class Bfloat16Weights(_Bfloat16):
    """Weights, buffers and activations in bfloat16; inputs are cast, and outputs back to float32."""

    name = "bfloat16 weights"

    def applies(self, facts: ModelFacts) -> Expectation | str:
        if facts.training:
            return "small steps are lost in bfloat16 weights"
        return super().applies(facts)

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        model.to(torch.bfloat16)
        call_between(model, as_bfloat16, as_float32)
        return model

    def source(self) -> list[str]:
        return [
            *_IMPORTS[1:],
            *text_of(as_bfloat16),
            *text_of(as_float32),
            *text_of(call_between),
            "model.to(torch.bfloat16)",
            "call_between(model, as_bfloat16, as_float32)",
        ]
