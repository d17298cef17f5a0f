"""A model made faster, with the proof: adapters of :mod:`kernel_pytorch.advice`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..advice.facts import Level
from ..advice.inherited import OptimizationRecommendation, OptimizationResult

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..advice.prove.task import Loss, OptimizerFactory

__all__ = ["CompilerOptimizationAssistant", "OptimizationResult"]


class CompilerOptimizationAssistant:
    """Tries changes on copies of a model and keeps what is proved.

    Args:
        device: where a model runs; None: where it is. On another one a copy runs.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = device

    def optimize_model(
        self,
        model: nn.Module,
        sample_input: Any,
        optimization_level: Level = "balanced",
        *,
        training: bool = False,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | torch.optim.Optimizer | None = None,
        max_error: float = 0.01,
        memory_gb: float | None = None,
        lengths: Iterable[int] | None = None,
        budget_s: float = 120.0,
    ) -> OptimizationResult:
        """See :func:`.prove.run.optimise`."""
        from ..advice.assist import optimised

        steps = {"training": training, "loss": loss, "optimizer": optimizer}
        limits = {"max_error": max_error, "memory_gb": memory_gb, "lengths": lengths, "budget_s": budget_s}
        return optimised(model, sample_input, optimization_level, self.device, {**steps, **limits})

    def apply_recommendations(
        self, model: nn.Module, recommendations: Sequence[OptimizationRecommendation], sample_input: Any
    ) -> dict[str, Any]:
        """Prove each on top of those kept before it, and keep or revert it: see :func:`.assist.applied`."""
        from ..advice.assist import applied

        return applied(model, recommendations, sample_input, self.device)
