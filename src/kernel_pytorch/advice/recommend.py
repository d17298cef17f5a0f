"""What could be tried on a model, and a copy with it, for the inherited names. Imports torch."""

from __future__ import annotations

from torch import nn

from .facts import Expectation, ModelFacts, Options
from .inherited import Hope, ModelAnalysisResult, OptimizationRecommendation, recommendation
from .prove.copies import copy_of
from .prove.limits import describe
from .prove.run import device_of, dtype_of
from .prove.search import hope_of, installed, refusal
from .prove.state import preserved
from .prove.task import set_mode
from .sample import Sample
from .strategy import registry
from .strategy.protocol import Strategy


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
            sample, _ = Sample.of(basis.sample_input).moved(device_of(copy), dtype_of(copy))
            result = strategy.apply(set_mode(copy, basis.facts.training), sample.clone())
        except Exception as error:
            raise ValueError(f"{name} cannot be applied: {describe(error)}") from error
    return result, "\n".join(strategy.source())
