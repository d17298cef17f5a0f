"""Whether a changed optimizer makes the steps of the original's. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..strategy.protocol import Base, Strategy
from .compare import Comparison, compare_outputs
from .original import Original
from .rounds import named, restored
from .task import Task

NUM_STEPS = 3


def changes_optimizer(strategies: Sequence[Strategy]) -> bool:
    """Whether any of them has an optimizer of its own."""
    changes = [getattr(type(one), "change_optimizer", Base.change_optimizer) for one in strategies]
    return any(change is not Base.change_optimizer for change in changes)


def compare_steps(
    original: Original,
    model: nn.Module,
    strategies: Sequence[Strategy],
    *,
    lossless: bool,
    max_error: float,
    pause: Callable[[], None],
) -> Comparison:
    """How far the parameters move in three steps, each optimizer being given the same gradients."""
    rounds = original.expected(None, input_gradients=False, pause=pause).original
    gradients = [one.gradients for one in rounds[:NUM_STEPS]]
    task = original.task
    reference = None if original.double is None else moves(task, original.double, [], gradients)
    first = moves(task, original.candidate.model, [], gradients)
    second = moves(task, model, strategies, gradients)
    return compare_outputs(reference, first, second, lossless=lossless, max_error=max_error)


def moves(
    task: Task,
    model: nn.Module,
    strategies: Sequence[Strategy],
    gradients: Sequence[dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """What the steps add to each parameter; the parameters are as before when it returns."""
    with restored(model):
        before = {name: parameter.detach().clone() for name, parameter in named(model)}
        optimizer = task.make_optimizer(model)
        if optimizer is None:
            raise ValueError("there is no optimizer to compare")
        for strategy in strategies:
            optimizer = getattr(strategy, "change_optimizer", lambda same: same)(optimizer)
        for step in gradients:
            for name, parameter in named(model):
                given = step.get(name)
                parameter.grad = None if given is None else given.to(parameter.dtype, copy=True)
            optimizer.step()
        return {name: parameter.detach() - before[name] for name, parameter in named(model)}
