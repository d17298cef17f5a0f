"""Which changes are tried, in which order, and why others are not. Pure: clock and trials are given."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..facts import LEVELS, Expectation, ModelFacts, Options, Trial

if TYPE_CHECKING:
    from ..strategy.protocol import Strategy

LEAST_S = 0.002
"""Seconds that a timed sample lasts at least."""
TRIAL_CALLS = 36
"""Calls that a trial makes at least, one length: warm-up, comparisons, eleven pairs, memory."""
CONFIRM_CALLS = 36
UNCHANGEABLE = {
    "scripted": "the model is a ScriptModule",
    "compiled": "the model is compiled already",
    "quantised": "the model is quantised already",
    "meta": "the model is on meta: it has no numbers",
    "uncopyable": "the model cannot be copied",
    "random": "the model differs from itself under equal seeds",
}


def installed(package: str) -> bool:
    """Whether a package can be found; it is not loaded."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def search(
    strategies: Sequence[Strategy],
    facts: ModelFacts,
    options: Options,
    *,
    deadline: float,
    clock: Callable[[], float],
    trial: Callable[[list[Strategy], Strategy, float], Trial],
    has: Callable[[str], bool] = installed,
    done: Sequence[Trial] = (),
    reserve_s: float = 0.0,
) -> Iterator[Trial]:
    """Trials in the order in which they were made, then those not made with the reason.

    Greedy: the strategies are tried in the order of their expected gain per second, each on top of what was
    kept before it.

    Args:
        deadline: of the trials and the confirmation, by ``clock``.
        trial: makes one: (kept, strategy, the time by which it must have ended).
        has: whether a package is installed.
        done: trials of a run that is resumed, in order; these strategies are not tried again.
        reserve_s: seconds of the confirmation beyond its calls and compiling.
    """
    finished = {one.strategy for one in done}
    ready: list[tuple[Strategy, Expectation]] = []
    left_out: list[Trial] = []
    for strategy in strategies:
        if strategy.name in finished or getattr(strategy, "offers", False):
            continue
        hope = refusal(strategy, facts, options, has) or hope_of(strategy, facts)
        if isinstance(hope, str):
            left_out.append(not_tried(strategy, hope))
        else:
            ready.append((strategy, hope))
    ready.sort(key=lambda pair: -gain_per_second(pair[1], facts, options))

    by_name = {strategy.name: strategy for strategy in strategies}
    records = [one for one in done if one.verdict == "kept"]
    kept = [by_name[one.strategy] for one in records]
    slowness = 1.0
    for strategy, hope in ready:
        if hope.gain < 1 and fits(facts, records):
            reason = "it would only save memory, and the call fits in the memory as it is"
            left_out.append(not_tried(strategy, reason, hope))
            continue
        compiles = "compiler" in strategy.needs
        needed = trial_seconds(hope, facts, options) * (slowness if compiles else 1.0)
        end = deadline - reserve_s - confirm_seconds(facts, records)
        began = clock()
        if began + needed > end:
            left_out.append(not_tried(strategy, budget_reason(needed, end - began, options), hope))
            continue
        made = replace(trial(list(kept), strategy, end), expected=hope.gain)
        if compiles:
            slowness = max(slowness, (clock() - began) / needed * slowness)
        if made.verdict == "kept":
            kept.append(strategy)
            records.append(made)
        yield made
    yield from left_out


def refusal(strategy: Strategy, facts: ModelFacts, options: Options, has: Callable[[str], bool]) -> str:
    """Why a strategy must not be tried, whatever it hopes for; "": it may be."""
    if facts.failed:
        return f"the model failed on its inputs: {facts.failed}"
    for kind in facts.structure.unusual:
        if kind in UNCHANGEABLE:
            return UNCHANGEABLE[kind]
    if facts.call.value is None:
        return f"the call could not be timed: {facts.call.why}"
    if LEVELS.index(strategy.level) > LEVELS.index(options.level):
        return f"--level {strategy.level}"
    for need in strategy.needs:
        kind, _, package = need.partition(":")
        if kind == "gpu" and not facts.structure.gpu:
            return "no GPU"
        if kind == "compiler" and facts.structure.compiler_missing:
            return facts.structure.compiler_missing
        if kind == "package" and not has(package):
            return f"{package} is not installed"
    return ""


def hope_of(strategy: Strategy, facts: ModelFacts) -> Expectation | str:
    """What a strategy hopes for, or why it does not apply; one that raises does not."""
    try:
        return strategy.applies(facts)
    except Exception as error:
        return f"it could not judge the facts: {type(error).__name__}: {error}"


def trial_seconds(hope: Expectation, facts: ModelFacts, options: Options) -> float:
    """Estimated seconds of a trial: the strategy's own estimate, but at least those of its calls."""
    call = max(facts.call.value or 0.0, LEAST_S)
    return max(hope.seconds, TRIAL_CALLS * (1 + len(options.lengths)) * call)


def gain_per_second(hope: Expectation, facts: ModelFacts, options: Options) -> float:
    """What strategies are ordered by."""
    return (hope.gain - 1) / trial_seconds(hope, facts, options)


def confirm_seconds(facts: ModelFacts, kept: Sequence[Trial]) -> float:
    """Estimated seconds of the final comparison; 0 while nothing is kept."""
    if not kept:
        return 0.0
    compiling = max(one.compile_s or 0.0 for one in kept)
    return compiling + CONFIRM_CALLS * max(facts.call.value or 0.0, LEAST_S)


def fits(facts: ModelFacts, kept: Sequence[Trial]) -> bool:
    """Whether the call's peak, with what was kept, is within the memory limit; unknown counts as within."""
    peak = facts.peak.value if facts.peak.value is not None else facts.predicted_peak.value
    if peak is None or facts.memory_limit is None:
        return True
    ratios = [one.peak_ratio for one in kept if one.peak_ratio is not None]
    return peak * (ratios[-1] if ratios else 1.0) <= facts.memory_limit


def budget_reason(needed: float, left: float, options: Options) -> str:
    """Why there is no time for a trial, with the budget that would do."""
    budget = 10 * math.ceil((options.budget_s + needed - max(left, 0.0)) / 10)
    return (
        f"it needs about {max(needed, 1):.0f} s and {max(left, 0):.0f} s of --budget "
        f"{options.budget_s:g}s are left: --budget {budget}s would do"
    )


def not_tried(strategy: Strategy, reason: str, hope: Expectation | None = None) -> Trial:
    """The record of a strategy that was not tried."""
    return Trial(
        strategy=strategy.name,
        verdict="not tried",
        reason=reason,
        lossless=strategy.lossless,
        expected=hope.gain if hope else None,
    )
