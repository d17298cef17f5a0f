"""Weights as constants of the compiled code. Imports torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..facts import Expectation, ModelFacts
from ..sample import Sample
from .compile import Compiled
from .estimates import compile_seconds


class Freezing(Compiled):
    """In inference inductor folds and lays out constant weights when it compiles."""

    name = "freezing"

    def hope(self, facts: ModelFacts) -> Expectation | str:
        if facts.training:
            return "training changes the weights"
        if not facts.structure.convolutions:
            return "it gained nothing on models without convolutions"
        return Expectation(
            gain=1.1,
            reason="batch norms and layouts of convolutions are folded into constant weights",
            seconds=compile_seconds(facts),
        )

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        return {"frozen": True}
