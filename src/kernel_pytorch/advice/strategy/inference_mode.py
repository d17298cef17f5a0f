"""Calls without what autograd keeps track of. Imports torch."""

from __future__ import annotations

import torch
from torch import nn

from ..facts import Expectation, ModelFacts
from ..sample import Sample
from .listing import text_of
from .protocol import Base
from .wrapping import call_within


class InferenceMode(Base):
    """``torch.inference_mode`` around each call, which spares views and version counters."""

    name = "inference mode"

    def applies(self, facts: ModelFacts) -> Expectation | str:
        if facts.training:
            return "training needs gradients"
        return Expectation(
            gain=1.01, reason="less work for each operator; matters where operators are small", seconds=2.0
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        call_within(model, torch.inference_mode)
        return model

    def source(self) -> list[str]:
        return [
            "import torch",
            "from collections.abc import Callable",
            "from typing import Any",
            "from torch import nn",
            *text_of(call_within),
            "call_within(model, torch.inference_mode)  # outputs cannot be used in training",
        ]
