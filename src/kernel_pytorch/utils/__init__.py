"""Analysis and optimisation of a model, under the inherited names. Names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .compiler_assistant import CompilerOptimizationAssistant as CompilerOptimizationAssistant
    from .compiler_assistant import OptimizationResult as OptimizationResult
    from .model_analyzer import CodeAnalyzer as CodeAnalyzer
    from .model_analyzer import ModelAnalysisResult as ModelAnalysisResult
    from .model_analyzer import ModelArchitectureAnalyzer as ModelArchitectureAnalyzer
    from .model_analyzer import PerformanceBottleneckDetector as PerformanceBottleneckDetector
    from .optimization_recommendations import OptimizationImplementer as OptimizationImplementer
    from .optimization_recommendations import OptimizationRecommendation as OptimizationRecommendation
    from .optimization_recommendations import (
        OptimizationRecommendationEngine as OptimizationRecommendationEngine,
    )

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "compiler_assistant": ["CompilerOptimizationAssistant", "OptimizationResult"],
        "model_analyzer": [
            "CodeAnalyzer",
            "ModelAnalysisResult",
            "ModelArchitectureAnalyzer",
            "PerformanceBottleneckDetector",
        ],
        "optimization_recommendations": [
            "OptimizationImplementer",
            "OptimizationRecommendation",
            "OptimizationRecommendationEngine",
        ],
    },
)
