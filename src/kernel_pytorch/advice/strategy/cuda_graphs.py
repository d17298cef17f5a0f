"""A call as one launch. Imports torch."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ..facts import Expectation, ModelFacts
from ..sample import Sample
from .compile import Compiled
from .estimates import compile_seconds


class CudaGraphs(Compiled):
    """torch.compile's mode "reduce-overhead"; outputs are overwritten by the next call."""

    name = "CUDA graphs"
    needs: tuple[str, ...] = ("compiler", "gpu")
    overwrites_outputs: ClassVar[bool] = True

    def hope(self, facts: ModelFacts) -> Expectation | str:
        if not facts.structure.gpu:
            return "no GPU"
        return Expectation(
            gain=1.3,
            reason="kernels are launched together, which matters where each is short",
            seconds=compile_seconds(facts),
        )

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        return {"options": {"triton.cudagraphs": True}}
