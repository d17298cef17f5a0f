"""A model made faster, for the inherited names. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .examine import placed, task_of
from .facts import Expectation, Level
from .inherited import (
    OptimizationRecommendation,
    OptimizationResult,
    analysis_fields,
    measured,
    recommendation,
)
from .prove.run import FACTS_S, optimise
from .prove.search import hope_of, not_tried
from .prove.session import Session
from .prove.state import preserved
from .recommend import hopes, judge, strategy_named
from .strategy import registry
from .strategy.protocol import Strategy


def optimised(
    model: nn.Module,
    sample_input: Any,
    level: Level,
    device: torch.device | str | None,
    options: dict[str, Any],
) -> OptimizationResult:
    """What :func:`.prove.run.optimise` says and returns.

    Args:
        options: its keywords.
    """
    there = placed(model, device)
    report, best = optimise(there, sample_input, level, **options)
    known = {strategy.name: strategy for strategy in registry.strategies()}
    result = OptimizationResult(
        **analysis_fields(report.facts, report.findings, hopes(report.facts), sample_input),
        optimized_model=model if best is there else best,
        trials=report.trials,
        report=report,
    )
    untried = tuple(one for one in report.trials if one.verdict == "not tried" and one.expected is not None)
    for trial in (*report.kept, *untried):
        judged = hope_of(known[trial.strategy], report.facts)
        hope = judged if isinstance(judged, Expectation) else None
        result.recommendations.append(recommendation(known[trial.strategy], hope, trial, result))
    return result


def applied(
    model: nn.Module,
    given: Sequence[OptimizationRecommendation],
    sample_input: Any,
    device: torch.device | str | None,
) -> dict[str, Any]:
    """Prove recommendations in their order, each on top of those kept before it, and keep or revert it.

    A call is a training step where the recommendations were made for one, with the default loss.

    Returns:
        original_model; and by the strategies' names: optimized_models (copies with it and all kept before
        it) and implementation_code of those kept, performance_improvements (what was measured) of all.

    Raises:
        ValueError: there is no strategy of a name.
    """
    wanted = [strategy_named(each.optimization_type) for each in given]
    training = any(each.analysis and each.analysis.facts and each.analysis.facts.training for each in given)
    kept: list[Strategy] = []
    models, lines, improvements = {}, {}, {}
    with preserved(model):
        session = Session(task_of(model, sample_input, device, training=training))
        facts = session.facts(FACTS_S)
        for strategy in wanted:
            hope = judge(strategy, facts)
            trial = not_tried(strategy, hope) if isinstance(hope, str) else session.trial(kept, strategy)
            improvements[strategy.name] = measured(trial)
            if trial.verdict == "kept":
                kept.append(strategy)
                models[strategy.name] = session.build(kept)
                lines[strategy.name] = "\n".join(trial.source)
    return {
        "original_model": model,
        "optimized_models": models,
        "implementation_code": lines,
        "performance_improvements": improvements,
    }
