"""What could be tried on a model, and how: adapters of :mod:`kernel_pytorch.advice`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..advice.inherited import ModelAnalysisResult, OptimizationRecommendation

if TYPE_CHECKING:
    from torch import nn

__all__ = ["OptimizationImplementer", "OptimizationRecommendation", "OptimizationRecommendationEngine"]


class OptimizationRecommendationEngine:
    """Says what could be tried."""

    def generate_recommendations(self, analysis: ModelAnalysisResult) -> list[OptimizationRecommendation]:
        """The strategies that apply to what was analysed, the greatest estimated gain first."""
        from ..advice.recommend import recommended

        return recommended(analysis)


class OptimizationImplementer:
    """Applies what was recommended, without a proof."""

    def implement_optimization(
        self, model: nn.Module, recommendation: OptimizationRecommendation
    ) -> tuple[nn.Module, str]:
        """A changed copy of a model, and Python that does the same.

        Raises:
            ValueError: it does not apply, or cannot be applied: why.
        """
        from ..advice.recommend import changed

        return changed(model, recommendation.optimization_type, recommendation.analysis)
