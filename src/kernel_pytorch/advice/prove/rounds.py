"""Run a model on several fresh inputs and keep all that must be equal. Imports torch.

In training each round is forward, loss and backward, then a step of SGD, so that the next round sees
whether the model really uses its parameters as they are now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..sample import Sample
from .candidate import keep
from .task import Task, seed_all

MOVE = 0.01
"""Norm of the step of SGD over that of the parameters."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one call gave."""

    outputs: Any
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """By parameter; those of inputs as "input 0", ..."""
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    """All, after the call."""
    changed: frozenset[str] = frozenset()
    """Names of the buffers that the call changed or made."""
    parameters: frozenset[str] = frozenset()
    """Names of all trainable ones."""
    rate: float = 0.0
    """Of the step of SGD that followed."""


def run_rounds(
    task: Task,
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    rates: Sequence[float] | None = None,
    input_gradients: bool = False,
    change: Callable[[Sample], Sample] = lambda sample: sample,
    pause: Callable[[], None] = lambda: None,
) -> list[Round]:
    """One round per sample; parameters and buffers are as before when it returns.

    Inputs of equal shapes are written to the same memory in each round, which shows results that are
    remembered by the address of an input.

    Args:
        rates: learning rates of SGD; None: such that the parameters move by a hundredth.
        input_gradients: whether floating inputs need a gradient too.
        change: what is done to inputs before the call, as a cast.
        pause: called before each round; raises to stop.
    """
    rounds: list[Round] = []
    held: Sample | None = None
    with restored(model):
        for number, sample in enumerate(samples):
            pause()
            held = refill(held, change(sample))
            before = _buffers(model)
            seed_all(number)
            if task.options.training:
                rate = None if rates is None else rates[number]
                done = _train(task, model, held, rate, input_gradients)
            else:
                done = Round(outputs=keep(task.step(model, held)), buffers=_buffers(model))
            rounds.append(replace(done, changed=_changed(before, done.buffers)))
    return rounds


def _train(task: Task, model: nn.Module, held: Sample, rate: float | None, input_gradients: bool) -> Round:
    leaves = [t for t in held.tensors() if t.is_floating_point() and t.requires_grad]
    call = held
    if input_gradients:
        marked = held.map(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)
        leaves = [t for t in marked.tensors() if t.requires_grad]
        call = marked.map(lambda t: t.clone() if t.requires_grad else t)  # which a model may write to
    for leaf in leaves:
        leaf.grad = None
    outputs = task.step(model, call)
    gradients = {name: _dense(p.grad) for name, p in named(model) if p.grad is not None}
    for number, leaf in enumerate(leaves):
        if leaf.grad is not None:
            gradients[f"input {number}"] = _dense(leaf.grad)
    kept, buffers = keep(outputs), _buffers(model)
    if rate is None:
        size, slope = (_norm(p.detach() for _, p in named(model)), _norm(gradients.values()))
        rate = MOVE * size / slope if slope > 0 else 0.0
    with torch.no_grad():
        for _, parameter in named(model):
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-rate)
    model.zero_grad(set_to_none=True)
    return Round(
        outputs=kept,
        gradients=gradients,
        buffers=buffers,
        parameters=frozenset(name for name, _ in named(model)),
        rate=rate,
    )


def refill(held: Sample | None, fresh: Sample) -> Sample:
    """The fresh inputs in the memory of the ones before, where all have their shapes; else a clone."""
    if held is None:
        return fresh.clone()
    pairs = list(zip(held.tensors(), fresh.tensors(), strict=False))
    equal = len(held.tensors()) == len(fresh.tensors()) and all(
        old.shape == new.shape and old.dtype == new.dtype and old.stride() == new.stride()
        for old, new in pairs
    )
    if not equal:
        return fresh.clone()
    with torch.no_grad():
        for old, new in pairs:
            old.copy_(new)
    return held


def named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters by the names of the original, tied ones once."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace("_orig_mod.", ""), parameter


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give parameters and buffers their values back, and drop gradients."""
    tensors = [*model.parameters(), *model.buffers()]
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    places = [
        (module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer in places:
                module._buffers[name] = buffer
            for tensor, value in saved:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        model.zero_grad(set_to_none=True)


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace("_orig_mod.", ""): b.detach().clone() for name, b in model.named_buffers()}


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> frozenset[str]:
    return frozenset(
        name for name, value in after.items() if name not in before or not torch.equal(before[name], value)
    )


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return (gradient.to_dense() if gradient.is_sparse else gradient).detach().clone()


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().abs().double().square().sum()) for t in tensors))
