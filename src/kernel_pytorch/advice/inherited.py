"""Results in the form of the inherited names of :mod:`kernel_pytorch.utils`. Without torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from .facts import AdviceReport, Expectation, Finding, ModelFacts, Trial
from .units import interval

if TYPE_CHECKING:
    from torch import nn

    from .strategy.protocol import Strategy

_DIFFICULTY = {"conservative": "easy", "balanced": "medium", "aggressive": "hard"}

Hope = tuple["Strategy", Expectation]


@dataclass
class ModelAnalysisResult:
    """Facts of a model, and what could be tried."""

    model_info: dict[str, Any]
    """:class:`.ModelFacts` as JSON has them."""
    performance_bottlenecks: list[dict[str, Any]]
    """Defects: kind, place, cost, remedy."""
    optimization_opportunities: list[dict[str, Any]]
    """Strategies that apply: strategy, estimated_gain, reason."""
    current_optimizations: list[str]
    overall_optimization_score: float | None
    """Attained share of the machine's roofline; None: not measured."""
    improvement_potential: float | None
    """Measured time over the roofline's bound; None: not measured."""
    facts: ModelFacts | None = field(default=None, repr=False)
    sample_input: Any = field(default=None, repr=False, compare=False)


@dataclass
class OptimizationRecommendation:
    """A strategy that applies to a model."""

    optimization_type: str
    """The strategy's name."""
    priority: str
    """high (from 1.5 times as fast), medium (from 1.1) or low."""
    description: str
    implementation_steps: list[str]
    expected_improvement: str
    """"estimated" with the reason, or "measured" with the 99 % interval."""
    difficulty: str
    """easy: equal results, no compiler. medium: and a compiler. hard: and what loses precision."""
    code_example: str | None = None
    """Python that does it; None: known once it has been applied."""
    educational_notes: str | None = None
    analysis: ModelAnalysisResult | None = field(default=None, repr=False, compare=False)
    """What it was made from."""


@dataclass(kw_only=True)
class OptimizationResult(ModelAnalysisResult):
    """The analysis, what was tried, and the optimised model."""

    optimized_model: nn.Module = field(repr=False)
    """A changed copy, or the model given if nothing was kept."""
    recommendations: list[OptimizationRecommendation] = field(default_factory=list)
    """What was kept, with what was measured, then what there was no time to try."""
    trials: tuple[Trial, ...]
    report: AdviceReport = field(repr=False)


def analysis_fields(
    facts: ModelFacts, findings: Sequence[Finding], hopes: Sequence[Hope], sample_input: Any
) -> dict[str, Any]:
    """The arguments of a :class:`ModelAnalysisResult`."""
    bound, call = facts.bound.value, facts.call.value
    return {
        "model_info": msgspec.to_builtins(facts),
        "performance_bottlenecks": [msgspec.to_builtins(finding) for finding in findings],
        "optimization_opportunities": [
            {"strategy": strategy.name, "estimated_gain": hope.gain, "reason": hope.reason}
            for strategy, hope in hopes
        ],
        "current_optimizations": current(facts),
        "overall_optimization_score": facts.attained.value,
        "improvement_potential": call / bound if bound and call is not None else None,
        "facts": facts,
        "sample_input": sample_input,
    }


def current(facts: ModelFacts) -> list[str]:
    """What of the strategies' work the model has done already."""
    structure = facts.structure
    fused = [site.place for site in structure.attention if site.fused]
    found = [f"fused attention at {', '.join(fused)}"] if fused else []
    found += [
        f"the model is {kind}" for kind in ("compiled", "scripted", "quantised") if kind in structure.unusual
    ]
    found += ["channels_last"] if structure.channels_last else []
    found += (
        [f"optimizer: {structure.optimizer}"] if structure.optimizer.endswith((" fused", " foreach")) else []
    )
    found += [f"{name} weights" for name in ("bfloat16", "float16") if facts.bytes_by_dtype.get(name)]
    return found


def recommendation(
    strategy: Strategy,
    hope: Expectation | None,
    trial: Trial | None = None,
    analysis: ModelAnalysisResult | None = None,
) -> OptimizationRecommendation:
    """A recommendation of a strategy.

    Args:
        hope: None: its gain was not estimated.
        trial: if it was tried.
        analysis: what it is made from.
    """
    said = inspect.getdoc(type(strategy)) or strategy.name
    gain = trial.gain if trial is not None and trial.gain is not None else hope.gain if hope else 1.0
    given = "model, [recommendation], sample_input"
    return OptimizationRecommendation(
        optimization_type=strategy.name,
        priority="high" if gain >= 1.5 else "medium" if gain >= 1.1 else "low",
        description=said.partition("\n\n")[0].replace("\n", " "),
        implementation_steps=[
            *(f"it needs {need.removeprefix('package:')}" for need in strategy.needs),
            "OptimizationImplementer().implement_optimization(model, recommendation) changes a copy",
            f"CompilerOptimizationAssistant().apply_recommendations({given}) proves it",
        ],
        expected_improvement=improvement(hope, trial),
        difficulty=_DIFFICULTY[strategy.level],
        code_example="\n".join(trial.source) if trial is not None and trial.source else None,
        educational_notes=said,
        analysis=analysis,
    )


def improvement(hope: Expectation | None, trial: Trial | None) -> str:
    """Measured, with the interval; else estimated, with the reason."""
    if trial is not None and trial.gain is not None:
        return f"measured: {interval(trial.gain, trial.low, trial.high)} times as fast, {trial.verdict}"
    if hope is not None:
        return f"estimated: {hope.gain:.2f} times as fast: {hope.reason}"
    return "not estimated"


def measured(trial: Trial) -> dict[str, Any]:
    """What a trial measured, as a dict without its pairs and lines."""
    found: dict[str, Any] = msgspec.to_builtins(trial)
    return {name: value for name, value in found.items() if name not in ("pairs", "source")}
