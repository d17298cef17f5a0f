"""One model looked at, changed, or tried with given strategies, for the inherited names. Imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .analysis.places import place_of_class
from .facts import Expectation, Finding, Level, ModelFacts, Options
from .inherited import (
    Hope,
    ModelAnalysisResult,
    OptimizationRecommendation,
    OptimizationResult,
    analysis_fields,
    measured,
    recommendation,
)
from .prove.copies import copy_of
from .prove.limits import describe
from .prove.run import ANALYSIS_S, device_of, findings_of, optimise
from .prove.search import hope_of, installed, not_tried, refusal
from .prove.session import Session
from .prove.state import preserved
from .prove.task import Task, set_mode
from .sample import Sample
from .static import static_facts
from .strategy import registry
from .strategy.protocol import Strategy


def task_of(
    model: nn.Module, sample_input: Any, device: torch.device | str | None = None, *, training: bool = False
) -> Task:
    """One call of a model, on a device.

    Args:
        sample_input: a tensor, a tuple (positional) or a dict (by keyword); None: there are no inputs.
        device: None: where the model is. On another one a copy runs.
    """
    there = placed(model, device)
    where = device_of(there)
    sample, _ = (Sample() if sample_input is None else Sample.of(sample_input)).moved(where)
    options = Options(level="aggressive", training=training)
    return Task(model=there, sample=sample, options=options, device=where, target=type(model).__name__)


def placed(model: nn.Module, device: torch.device | str | None) -> nn.Module:
    """The model, or a copy of it on another device."""
    if device is None or torch.empty(0, device=device).device == device_of(model):
        return model
    return copy_of(model).to(device)


def analysis(model: nn.Module, sample_input: Any, device: torch.device | str | None) -> ModelAnalysisResult:
    """Facts, defects and what could be tried; without a sample those facts that need no call."""
    task = task_of(model, sample_input, device)
    if sample_input is None:
        facts = static_facts(task, "no sample input was given")
        return ModelAnalysisResult(**analysis_fields(facts, (), (), None))
    with preserved(model):
        session = Session(task)
        facts = session.facts(ANALYSIS_S)
        found = findings_of(session.task, facts)
    return ModelAnalysisResult(**analysis_fields(facts, found, hopes(facts), sample_input))


def bottlenecks(model: nn.Module, sample_input: Any, facts: ModelFacts | None) -> tuple[Finding, ...]:
    """The defects of a model; none is known without a sample."""
    if sample_input is None or facts is None or facts.failed:
        return ()
    with preserved(model):
        return findings_of(Session(task_of(model, sample_input), facts).task, facts)


def code(model: nn.Module) -> dict[str, Any]:
    """What can be said of a model without a call: its class, its submodules and where their code is."""
    kinds = {type(module) for module in model.modules()}
    facts = static_facts(task_of(model, None))
    return {
        "model": facts.model,
        "place": facts.place,
        "modules": dict(Counter(type(module).__name__ for module in model.modules())),
        "places": {
            kind.__name__: place_of_class(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__)
        },
        "parameters": facts.parameters,
        "trainable": facts.trainable,
        "buffers": facts.buffers,
        "bytes_by_dtype": facts.bytes_by_dtype,
        "tied": [list(names) for names in facts.tied],
    }


def hopes(facts: ModelFacts) -> list[Hope]:
    """The strategies of any level that apply, with what is hoped for, the greatest gain first."""
    judged = [(strategy, judge(strategy, facts)) for strategy in registry.strategies()]
    found = [(strategy, hope) for strategy, hope in judged if isinstance(hope, Expectation)]
    return sorted(found, key=lambda pair: -pair[1].gain)


def judge(strategy: Strategy, facts: ModelFacts) -> Expectation | str:
    """What a strategy hopes for, or why it does not apply."""
    if getattr(strategy, "offers", False):
        return "it computes another function"
    options = Options(level="aggressive", training=facts.training)
    return refusal(strategy, facts, options, installed) or hope_of(strategy, facts)


def strategy_named(name: str) -> Strategy:
    """A fresh strategy.

    Raises:
        ValueError: there is none of that name.
    """
    known = {strategy.name: strategy for strategy in registry.strategies()}
    if name not in known:
        raise ValueError(f"no strategy is named {name!r}; there are {', '.join(known)}")
    return known[name]


def recommended(result: ModelAnalysisResult) -> list[OptimizationRecommendation]:
    """The strategies that apply to what was analysed, the greatest estimated gain first."""
    if result.facts is None:
        return []
    return [recommendation(strategy, hope, None, result) for strategy, hope in hopes(result.facts)]


def changed(model: nn.Module, name: str, basis: ModelAnalysisResult | None) -> tuple[nn.Module, str]:
    """A copy of a model with a strategy applied, not proved, and lines of Python that do the same.

    Args:
        basis: the analysis of such a model with a sample.

    Raises:
        ValueError: it does not apply or cannot be applied: why.
    """
    strategy = strategy_named(name)
    if basis is None or basis.facts is None or basis.sample_input is None:
        raise ValueError(f"{name} needs the facts of a call: analyze(model, sample_input) has them")
    hope = judge(strategy, basis.facts)
    if isinstance(hope, str):
        raise ValueError(f"{name} does not apply: {hope}")
    with preserved(model):
        try:
            copy = copy_of(model)
            sample, _ = Sample.of(basis.sample_input).moved(device_of(copy))
            result = strategy.apply(set_mode(copy, basis.facts.training), sample.clone())
        except Exception as error:
            raise ValueError(f"{name} cannot be applied: {describe(error)}") from error
    return result, "\n".join(strategy.source())


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
        hope = hope_of(known[trial.strategy], report.facts)
        hope = hope if isinstance(hope, Expectation) else None
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
        facts = session.facts(ANALYSIS_S)
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
