"""Advice on a model that is proved: each change is compared and timed on a copy, then kept or reverted.

Names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .analysis.memory import peak_memory as peak_memory
    from .analysis.memory import predict_peak as predict_peak
    from .facts import AdviceReport as AdviceReport
    from .facts import Expectation as Expectation
    from .facts import Finding as Finding
    from .facts import ModelFacts as ModelFacts
    from .facts import Options as Options
    from .facts import Trial as Trial
    from .prove.compare import compare_outputs as compare_outputs
    from .prove.run import advise as advise
    from .prove.timing import Ratio as Ratio
    from .prove.timing import interleave as interleave
    from .prove.timing import median_ratio as median_ratio
    from .strategy.protocol import Strategy as Strategy
    from .strategy.registry import strategies as strategies

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "analysis.memory": ["peak_memory", "predict_peak"],
        "facts": ["AdviceReport", "Expectation", "Finding", "ModelFacts", "Options", "Trial"],
        "prove.compare": ["compare_outputs"],
        "prove.run": ["advise"],
        "prove.timing": ["Ratio", "interleave", "median_ratio"],
        "strategy.protocol": ["Strategy"],
        "strategy.registry": ["strategies"],
    },
)
