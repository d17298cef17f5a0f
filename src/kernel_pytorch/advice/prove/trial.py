"""One candidate proved: equal, and faster or smaller, or why not. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..analysis.calls import synchronizer
from ..analysis.memory import peak_memory
from ..facts import ModelFacts, Trial, Verdict
from ..strategy.protocol import Strategy
from .bound import least_seconds
from .candidate import Candidate, build, forget_compiled_code, frames_compiled, strict_compiler
from .decide import Measured, reason_against
from .equal import check_again, check_equal, warm_up
from .judge import Evidence
from .limits import Deadline, NotKeptError, OutOfTimeError, describe
from .optimizer_steps import changes_optimizer, compare_steps
from .original import Original
from .rounds import restored
from .timing import time_pairs
from .verdict import verdict


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a candidate is proved against."""

    original: Original
    facts: ModelFacts
    deadline: Deadline
    base: Candidate
    """The best so far."""
    base_ratio: float | None = None
    """Its peak memory over the original's; None: unknown."""
    original_peak: Callable[[], int]
    """Bytes of a call of the original; asked for once the candidate's are known."""
    final: bool = False
    """Whether it is the confirmation, which any proved gain passes."""


def prove(proof: Proof, strategies: Sequence[Strategy], name: str) -> Trial:
    """Apply all strategies to a copy, compare it with the original, and time it against the best so far.

    What the candidate raises becomes the verdict "failed", and warnings are not shown.
    """
    found: dict[str, Any] = {}
    evidence = Evidence()
    outcome: Verdict = "kept"
    reason = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where they are errors, a candidate would fail on the first
        try:
            _prove(proof, strategies, evidence, found)
            found["source"] = tuple(strategies[-1].source())
        except NotKeptError as stop:
            outcome, reason = stop.verdict, stop.reason
        except (Exception, SystemExit) as error:
            outcome, reason = "failed", describe(error)
    return Trial(
        strategy=name,
        verdict=outcome,
        reason=reason,
        lossless=all(strategy.lossless for strategy in strategies),
        error=evidence.error,
        original_error=evidence.original_error,
        compile_s=evidence.compile_s,
        **found,
    )


def _prove(proof: Proof, strategies: Sequence[Strategy], evidence: Evidence, found: dict[str, Any]) -> None:
    original, facts, deadline = proof.original, proof.facts, proof.deadline
    options = original.task.options
    forget_compiled_code()
    candidate = build(original.task, strategies)
    deadline.check(what="it was compared")
    check_equal(original, candidate, evidence, deadline, max_error=options.max_error)
    if original.task.optimizer is not None and options.training and changes_optimizer(strategies):
        steps = compare_steps(
            original,
            candidate.model,
            strategies,
            lossless=candidate.lossless,
            max_error=options.max_error,
            pause=deadline.check,
        )
        evidence.add(steps)
        if not steps.equal:
            raise NotKeptError(f"steps of the optimizer differ: {steps.reason}")

    base = proof.base
    with restored(base.model), restored(candidate.model):
        warm_up(base, deadline)
        again = warm_up(candidate, deadline, must_compile=False)  # anew, if dropout was 0 until now
        if again is not None:
            evidence.compile_s = max(evidence.compile_s or 0.0, again)
        peak = peak_of(candidate)
        whole = proof.original_peak()
        found["peak_ratio"] = peak / whole if whole > 0 else None
        frames = frames_compiled()
        with strict_compiler(base.compiled or candidate.compiled):
            timing = time_pairs(
                base.call,
                candidate.call,
                original.task.sample.clone,
                budget_s=deadline.left(),
                clock=deadline.clock,
                synchronize=synchronizer(original.task.device),
            )
        if not timing.pairs:
            raise OutOfTimeError(timing.stopped)
        _, ratio, slow = verdict(timing, facts.noise.value or 0.0)
        assert ratio is not None
        found.update(gain=ratio.value, low=ratio.low, high=ratio.high, pairs=timing.pairs)
        if frames_compiled() != frames:
            raise NotKeptError("it was compiled again while it was timed")
    reason = reason_against(
        Measured(
            gain=ratio.value,
            low=ratio.low,
            base_s=ratio.first_s,
            candidate_s=ratio.second_s,
            stopped=timing.stopped,
            slow=slow,
            peak_ratio=found["peak_ratio"],
        ),
        facts,
        base_ratio=proof.base_ratio,
        least_s=least_seconds(facts, lossless=candidate.lossless, threads=candidate.threads),
        final=proof.final,
    )
    if reason:
        raise NotKeptError(reason)
    check_again(original, candidate, evidence, deadline, max_error=options.max_error)


def peak_of(candidate: Candidate) -> int:
    """Bytes that a call holds at once beyond parameters and inputs, of a candidate that is warm."""
    sample = candidate.task.sample.clone()
    return peak_memory(lambda: candidate.call(sample), candidate.task.device)
