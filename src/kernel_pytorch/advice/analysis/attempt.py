"""Running a task's model where it can be run, and why not where it cannot. Imports torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..prove.copies import UncopyableError, copy_of
from ..sample import Sample
from .places import raised
from .runs import Step

if TYPE_CHECKING:
    from ..prove.task import Task

T = TypeVar("T")


class Attempt:
    """A copy of the task's model after its first call, or the reason why there is none.

    A model that cannot be copied runs itself in inference, and does not run in training.

    Args:
        deadline: by ``clock``, after which no further costly part begins.
    """

    def __init__(self, task: Task, *, deadline: float, clock: Callable[[], float]) -> None:
        self.task, self.deadline, self.clock = task, deadline, clock
        self.step = step_of_task(task)
        self.failed = ""
        """The exception of the first call."""
        self.cannot = ""
        """Why the model was not run; "": it ran."""
        self.remarks: list[str] = []
        self.outputs: Any = None
        self.is_meta = any(t.is_meta for t in (*task.model.parameters(), *task.model.buffers()))
        self.model = self._copy()
        if not self.cannot:
            try:
                self.outputs = self.step(self.model, task.sample.clone())
            except (Exception, SystemExit) as error:
                self.failed = raised(error)
                self.cannot = f"the model failed on its inputs: {self.failed}"

    def _copy(self) -> nn.Module:
        if self.is_meta:
            self.cannot = "the model is on meta: it has no numbers"
            return self.task.model
        try:
            return copy_of(self.task.model)
        except UncopyableError as error:
            why = f"the model cannot be copied: {error}"
            self.remarks.append(why)
            self.cannot = why if self.task.options.training else ""
            return self.task.model

    def part(
        self, what: str, compute: Callable[[], T], *, costly: bool = False, runs: bool = True
    ) -> T | str:
        """A part of the facts, or why there is none.

        Args:
            what: to the reason, as "the profile".
            costly: whether it is left out when time is over.
            runs: whether it needs a model that can run.
        """
        if runs and self.cannot:
            return self.cannot
        if costly and self.clock() > self.deadline:
            return "no time was left"
        try:
            return compute()
        except (Exception, SystemExit) as error:
            return f"{what} failed: {raised(error)}"


def step_of_task(task: Task) -> Step:
    """The task's call, with an optimizer for each model that it gets if the task has one."""
    optimizers: weakref.WeakKeyDictionary[nn.Module, torch.optim.Optimizer] = weakref.WeakKeyDictionary()

    def step(model: nn.Module, sample: Sample) -> Any:
        if task.optimizer is None or not task.options.training:
            return task.step(model, sample, None)
        if model not in optimizers:
            made = task.make_optimizer(model)
            assert made is not None
            optimizers[model] = made
        return task.step(model, sample, optimizers[model])

    return step
