"""The memory that a call needs: measured, and predicted without running it. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from ..facts import Fact, Options, unknown
from ..prove.task import Loss, OptimizerFactory, Task
from ..sample import Sample
from .fake import fake
from .held import Held
from .places import raised
from .runs import fake_warnings_off


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``run`` holds at once beyond what was allocated before, its result included.

    On CUDA by the caching allocator's own count. On CPU by replaying the profiler's memory events: every
    allocation and release that goes through PyTorch's CPU allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def step_peak(
    step: Callable[[], object],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    device: torch.device,
) -> int:
    """The most bytes beyond parameters and inputs while a warm model makes a step: what is predicted.

    Gradients are dropped before, so that the profiler sees where theirs end. An optimizer's state, which is
    there already, is added.
    """
    model.zero_grad(set_to_none=True)
    leaves = pytree.tree_leaves(dict(optimizer.state)) if optimizer is not None else []
    memories = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]
    state = {memory._cdata: memory.nbytes() for memory in memories}
    return sum(state.values()) + peak_memory(step, device)


def predict_peak(
    model: nn.Module,
    sample_input: Any,
    *,
    training: bool = False,
    optimizer: OptimizerFactory | None = None,
    loss: Loss | None = None,
) -> Fact:
    """The most bytes that a call would hold at once beyond the parameters, buffers and inputs.

    A copy runs on fake tensors: neither the memory nor the numbers exist. In training it is the peak of a
    second step, in which the gradients and the optimizer's state of the first are there too.

    Args:
        sample_input: a tensor, a tuple (positional) or a dict (by keyword); real, or fake.
        optimizer: parameters -> Optimizer.
        loss: (outputs, inputs) -> scalar; see :class:`.Task`.

    Returns:
        "At least", where an operator allocates inside what fake tensors do not show; ``why`` names it.
        Unknown with the reason where the model cannot be copied, fails, or needs a number, as ``.item()``.
    """
    sample = Sample.of(sample_input)
    task = Task(
        model=model, sample=sample, options=Options(training=training), loss=loss, optimizer=optimizer
    )
    return predict(task, lambda: sample)


def predict(task: Task, draw: Callable[[], Sample]) -> Fact:
    """As :func:`predict_peak`, of inputs that are drawn under fake tensors and need no memory either."""
    try:
        with fake_warnings_off(), fake(task.model, Sample()) as (model, _):
            inputs = without_numbers(draw())
            return _followed(task, model, inputs)
    except Exception as error:
        return unknown(f"not predicted: {raised(error)}")


def without_numbers(sample: Sample) -> Sample:
    """Fake tensors where they are real, while fake tensors are on."""
    return sample.map(lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad))


def _followed(task: Task, model: nn.Module, inputs: Sample) -> Fact:
    training, optimizer = task.options.training, task.make_optimizer(model)
    held = Held([*model.parameters(), *model.buffers(), *inputs.tensors()])
    with held:
        for _ in range(2 if training else 1):
            outputs = task.step(model, inputs, optimizer)
            del outputs
    if held.hiding:
        why = f"allocate inside what is not seen: {', '.join(held.hiding)}"
        return Fact(value=held.peak, basis="predicted", at_least=True, why=why)
    return Fact(value=held.peak, basis="predicted")
