"""What a model is and what a call of it costs: adapters of :mod:`kernel_pytorch.advice`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..advice.inherited import ModelAnalysisResult

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "CodeAnalyzer",
    "ModelAnalysisResult",
    "ModelArchitectureAnalyzer",
    "PerformanceBottleneckDetector",
]


class ModelArchitectureAnalyzer:
    """Analyses models.

    Args:
        device: where a model runs; None: where it is. On another one a copy runs.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = device

    def analyze(self, model: nn.Module, sample_input: Any = None) -> ModelAnalysisResult:
        """Run a copy of a model on a sample; without one, what needs a call is None.

        ``sample_input`` is a tensor, a tuple (positional) or a dict (by keyword).
        """
        from ..advice.examine import analysis

        return analysis(model, sample_input, self.device)


class CodeAnalyzer:
    """Looks at a model without running it."""

    def analyze_model(self, model: nn.Module) -> dict[str, Any]:
        """Its class and its submodules', with the lines of their code, and the number of parameters."""
        from ..advice.examine import code

        return code(model)


class PerformanceBottleneckDetector:
    """Looks for defects of a model."""

    def detect_bottlenecks(self, model: nn.Module, analysis: ModelAnalysisResult) -> list[dict[str, Any]]:
        """Run a copy on the sample of an analysis; none is found without a sample."""
        from ..advice.examine import bottlenecks

        return [*map(msgspec.to_builtins, bottlenecks(model, analysis.sample_input, analysis.facts))]
