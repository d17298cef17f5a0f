"""Facts and trials of one task, in this process. Imports torch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..analysis.analyse import analyse
from ..analysis.unusual import is_compiled
from ..facts import ModelFacts, Trial
from ..strategy.protocol import Strategy
from .candidate import Candidate, build, forget_compiled_code
from .copies import UncopyableError, copy_of
from .limits import Deadline, describe
from .original import Original
from .own_code import give_own_code
from .search import not_tried
from .task import Task, set_mode
from .trial import Proof, peak_of, prove


class Session:
    """What a run knows of its task: the facts, the original, the best so far.

    The task's model is not changed; every candidate is built from a copy of it. The caller restores the
    state of the process, as :func:`.state.preserved` does.
    """

    def __init__(
        self,
        task: Task,
        facts: ModelFacts | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        done: Sequence[Trial] = (),
    ) -> None:
        """
        Args:
            facts: if they are known from a process before this one.
            done: trials of that process.
        """
        self.clock = clock
        self._compiled = is_compiled(task.model)
        self.task, self._refused = prepared(task)
        self._facts = facts
        self._original: Original | None = None
        self._peak: int | None = None
        self._base: tuple[tuple[str, ...], Candidate] | None = None
        self._ratios = {trial.strategy: trial.peak_ratio for trial in done}

    def facts(self, clock_limit: float = 15.0) -> ModelFacts:
        """What is known of the model, before anything is changed.

        Args:
            clock_limit: seconds that measuring may take.
        """
        if self._facts is None:
            deadline = self.clock() + clock_limit
            self._facts = analyse(self.task, deadline=deadline, clock=self.clock)
            if self._compiled and "compiled" not in self._facts.structure.unusual:
                self._facts = as_compiled(self._facts)
        return self._facts

    @property
    def reference(self) -> str:
        """What outputs are compared with; "" before the first trial."""
        return "" if self._original is None else self._original.reference

    def trial(self, kept: Sequence[Strategy], strategy: Strategy, deadline: float = math.inf) -> Trial:
        """Try one more change on top of those kept.

        Args:
            deadline: by the session's clock; what cannot end before it is given up.
        """
        original = self._ready()
        if isinstance(original, str):
            return not_tried(strategy, original)
        ratio = self._ratios.get(kept[-1].name) if kept else 1.0
        proof = self._proof(original, self._best(original, kept), deadline, ratio)
        trial = prove(proof, [*kept, strategy], strategy.name)
        self._ratios[strategy.name] = trial.peak_ratio
        return trial

    def confirm(self, kept: Sequence[Strategy], deadline: float = math.inf) -> Trial:
        """All that was kept against the original; "reverted" if its interval reaches 1."""
        name = " + ".join(strategy.name for strategy in kept)
        original = self._ready()
        if isinstance(original, str):
            return Trial(strategy=name, verdict="failed", reason=original)
        proof = self._proof(original, original.candidate, deadline, 1.0, final=True)
        trial = prove(proof, list(kept), name)
        lines = [line for strategy in kept for line in strategy.source()]
        return replace(trial, source=tuple(lines) if trial.verdict == "kept" else ())

    def build(self, kept: Sequence[Strategy]) -> nn.Module:
        """A changed copy of the model; it is compiled, if at all, at its first call."""
        forget_compiled_code()
        return build(self.task, kept).model

    def _ready(self) -> Original | str:
        """The original, or why nothing can be proved of it."""
        if self._original is None and self._refused is None:
            try:
                original = Original(self.task)
                self._refused = original.random()
            except Exception as error:
                self._refused = f"the original cannot be compared with: {describe(error)}"
            else:
                self._original = original
        return self._refused or self._original or ""

    def _best(self, original: Original, kept: Sequence[Strategy]) -> Candidate:
        if not kept:
            return original.candidate
        names = tuple(strategy.name for strategy in kept)
        if self._base is None or self._base[0] != names:
            self._base = (names, build(self.task, kept))
            give_own_code(self._base[1].model)
        return self._base[1]

    def _proof(
        self,
        original: Original,
        base: Candidate,
        deadline: float,
        ratio: float | None,
        *,
        final: bool = False,
    ) -> Proof:
        return Proof(
            original=original,
            facts=self.facts(),
            deadline=Deadline(at=deadline, clock=self.clock),
            base=base,
            base_ratio=ratio,
            original_peak=lambda: self._peak_of(original.candidate),
            final=final,
        )

    def _peak_of(self, candidate: Candidate) -> int:
        if self._peak is None:
            self._peak = peak_of(candidate)
        return self._peak


def as_compiled(facts: ModelFacts) -> ModelFacts:
    """The facts of a copy, which has no mark of ``.compile()``, as those of the model."""
    structure = replace(facts.structure, unusual=(*facts.structure.unusual, "compiled"))
    remark = "the model is compiled by its compile(): what is shown is of a copy that is not"
    return replace(facts, structure=structure, remarks=(*facts.remarks, remark))


def prepared(task: Task) -> tuple[Task, str | None]:
    """The task with a copy of its model, in the mode of the call, and why nothing can be proved of it.

    A model that cannot be copied is analysed itself. A lazy one is run once, so that it has its parameters.
    """
    try:
        model, refused = copy_of(task.model), None
    except UncopyableError as error:
        model, refused = task.model, f"the model cannot be copied: {error}"
    set_mode(model, task.options.training)
    ready = replace(task, model=model)
    if refused is None and any(is_lazy(parameter) for parameter in model.parameters()):
        with torch.no_grad(), contextlib.suppress(Exception):  # the analysis meets and records it
            task.sample.clone().call(model)
    return ready, refused
