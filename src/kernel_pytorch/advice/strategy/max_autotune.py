"""Inductor's search for the fastest kernel of each product. Imports torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..facts import Expectation, Level, ModelFacts
from ..sample import Sample
from .compile import Compiled
from .estimates import compile_seconds


class MaxAutotune(Compiled):
    """torch.compile's mode "max-autotune-no-cudagraphs"."""

    name = "max-autotune"
    level: Level = "aggressive"

    def hope(self, facts: ModelFacts) -> Expectation | str:
        structure = facts.structure
        if not structure.linears + structure.convolutions:
            return "no linear layers or convolutions to tune"
        return Expectation(
            gain=1.1,
            reason="kernels of products are chosen by trying them",
            seconds=(2.0 if structure.gpu else 4.0) * compile_seconds(facts),
        )

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        return {"options": {"max_autotune": True, "coordinate_descent_tuning": True}}
