"""A whole run in this process: facts, findings, trials, the confirmation, the report. Imports torch."""

from __future__ import annotations

import datetime
import inspect
import itertools
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...machine.files import Files
from ...machine.host.cpu import read_packages
from ..analysis.findings import findings
from ..analysis.observe import observe
from ..facts import AdviceReport, Finding, Level, Machine, ModelFacts, Options, Trial
from ..sample import Sample
from ..strategy.protocol import Strategy
from ..strategy.registry import broken, strategies
from .limits import describe
from .search import UNCHANGEABLE, search
from .session import Session
from .state import preserved
from .task import Loss, OptimizerFactory, Redraw, Task

FACTS_S = 9.0
FINDINGS_S = 6.0
"""Seconds that both may take beyond the budget of the trials, where a call is quick."""
CLOSED = ("scripted", "meta", "quantised", "uncopyable")
"""Kinds of models that cannot be watched, or whose code is not the user's."""


def advise(
    model: nn.Module, sample_input: Any, optimization_level: Level = "balanced", **options: Any
) -> AdviceReport:
    """Analyse a model, prove what makes it faster on copies of it, and report.

    Args:
        options: as of :func:`optimise`.
    """
    return optimise(model, sample_input, optimization_level, **options)[0]


def optimise(
    model: nn.Module,
    sample_input: Any,
    optimization_level: Level = "balanced",
    *,
    training: bool = False,
    loss: Loss | None = None,
    optimizer: OptimizerFactory | torch.optim.Optimizer | None = None,
    max_error: float = 0.01,
    memory_gb: float | None = None,
    lengths: Iterable[int] | None = None,
    budget_s: float = 120.0,
    redraw: Redraw | None = None,
) -> tuple[AdviceReport, nn.Module]:
    """The report, and a copy of the model with all that was proved, or the model given if that is nothing.

    The copy is in eval mode, or in training mode if ``training`` is set.

    The model, its gradients, and the state of the process are as before when it returns or raises, but for
    Dynamo's caches, which are reset. Runs in this process: what cannot end in time is not started, but a
    compilation cannot be interrupted.

    Args:
        sample_input: a tensor, a tuple (positional) or a dict (by keyword).
        training: whether a call is a training step rather than a forward pass without gradients.
        loss: of a training step: (outputs, inputs) -> scalar.
        optimizer: of a training step: parameters -> Optimizer, or an Optimizer of which new ones of its
            class and defaults are made.
        max_error: relative RMS error up to which a change that loses precision is kept.
        memory_gb: GB (1e9 bytes) that a call may need; None: what the process is granted.
        lengths: other lengths of the inputs to look at.
        budget_s: seconds for all trials.
        redraw: (length or None, seed) -> :class:`Sample`; makes fresh inputs where permuted or normal
            ones would not do.

    Raises:
        ValueError: an option is out of its range.
    """
    options = Options(
        level=optimization_level,
        training=training,
        max_error=max_error,
        memory_bytes=None if memory_gb is None else _bytes(memory_gb),
        lengths=tuple(sorted(set(lengths or ()))),
        budget_s=budget_s,
    )
    device = device_of(model)
    sample, moved = Sample.of(sample_input).moved(device, dtype_of(model))
    given, factory = (
        (optimizer, another_like(optimizer))
        if isinstance(optimizer, torch.optim.Optimizer)
        else (None, optimizer)
    )
    task = Task(
        model=model,
        sample=sample,
        options=options,
        loss=loss,
        optimizer=factory,
        redraw=redraw,
        device=device,
        target=type(model).__name__,
    )
    with preserved(model, given) as state:
        known = strategies()
        report, best = run(task, known, remarks=(*moved, *broken))
    lost = tuple(f"{name} is not as it was before the run" for name in state.changed)
    return replace(report, facts=with_remarks(report.facts, lost)), best


def run(
    task: Task,
    known: Sequence[Strategy],
    *,
    facts: ModelFacts | None = None,
    remarks: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> tuple[AdviceReport, nn.Module]:
    """What :func:`optimise` returns, of a task and strategies; the caller restores the process's state.

    Args:
        facts: if they are known.
        remarks: for the report, beside those of the analysis.
    """
    began, options = clock(), task.options
    session = Session(task, facts, clock=clock)
    facts = with_remarks(session.facts(FACTS_S), remarks)
    found, unobserved = look(session.task, facts, FINDINGS_S)
    deadline = clock() + options.budget_s
    trials = tuple(search(known, facts, options, deadline=deadline, clock=clock, trial=session.trial))
    kept = chosen(known, trials)
    result = session.confirm(kept, deadline) if kept else None
    changed = result is not None and result.verdict == "kept"
    offered, failed = offers_of(known, session.task, facts)
    report = AdviceReport(
        target=task.target or type(task.model).__name__,
        machine=machine_of(facts),
        options=options,
        facts=with_remarks(facts, (*unobserved, *failed)),
        findings=found,
        trials=trials,
        result=result,
        reference=session.reference,
        offers=offered,
        seconds=clock() - began,
    )
    return report, session.build(kept) if changed else task.model


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are, by the first that has values; of one without, the CPU."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t.device for t in tensors if t.device.type != "meta"), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """Of a model's first floating parameter; None: it has none."""
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)


def _bytes(memory_gb: float) -> int:
    if not 1e-9 <= memory_gb < math.inf:
        raise ValueError(f"memory_gb must be positive and finite, got {memory_gb}")
    return int(memory_gb * 1e9)


def another_like(optimizer: torch.optim.Optimizer) -> OptimizerFactory:
    """Makes optimizers of the class and the defaults of one that exists."""
    kind: Callable[..., torch.optim.Optimizer] = type(optimizer)
    known = inspect.signature(kind.__init__).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in known}
    return lambda parameters: kind(parameters, **options)


def look(task: Task, facts: ModelFacts, limit_s: float) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """The defects of a model, and a remark on each thing that could not be examined.

    Args:
        limit_s: seconds after which nothing more is examined.
    """
    closed = [UNCHANGEABLE[kind] for kind in CLOSED if kind in facts.structure.unusual]
    if closed:
        return (), (f"defects were not looked for: {closed[0]}",)
    observed = observe(task, limit_s=limit_s)
    return findings(facts, observed), () if facts.failed else observed.unobserved


def offers_of(
    known: Sequence[Strategy], task: Task, facts: ModelFacts
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Other functions that could replace parts of the model, and a remark for each offer that failed."""
    offered, failed = [], []
    changeable = not facts.failed and not UNCHANGEABLE.keys() & set(facts.structure.unusual)
    for strategy in known if changeable else ():
        offer = getattr(strategy, "offer", None)
        if not getattr(strategy, "offers", False) or offer is None:
            continue
        try:
            finding = offer(task.model, task.sample.clone(), facts)
        except Exception as error:
            failed.append(f"{strategy.name} could not be offered: {describe(error)}")
        else:
            offered += [finding] if finding is not None else []
    return tuple(offered), tuple(failed)


def chosen(known: Sequence[Strategy], trials: Sequence[Trial]) -> list[Strategy]:
    """The strategies that were kept, in the order in which they were."""
    by_name = {strategy.name: strategy for strategy in known}
    return [by_name[trial.strategy] for trial in trials if trial.verdict == "kept"]


def with_remarks(facts: ModelFacts, remarks: Sequence[str]) -> ModelFacts:
    """The facts with more remarks."""
    return replace(facts, remarks=(*facts.remarks, *remarks)) if remarks else facts


def machine_of(facts: ModelFacts) -> Machine:
    """On what it was measured."""
    models = [package.model for package in read_packages(Files("/")) if package.model]
    return Machine(
        processor=models[0] if models else platform.processor() or platform.machine(),
        device=facts.device,
        threads=facts.threads,
        torch=str(torch.__version__),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
