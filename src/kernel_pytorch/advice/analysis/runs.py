"""Running a call under a :class:`Survey`: on shapes alone where possible, else on a copy. Imports torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..prove.copies import copy_of
from ..sample import Sample
from .fake import fake
from .survey import Survey

Step = Callable[[nn.Module, Sample], Any]
"""One call of a model."""


def inference_step(model: nn.Module, sample: Sample) -> Any:
    """Forward, without gradients."""
    with torch.no_grad():
        return sample.call(model)


def training_step(model: nn.Module, sample: Sample) -> Any:
    """Forward, the mean square of the floating outputs, and backward.

    Raises:
        ValueError: no output has a gradient.
    """
    model.zero_grad(set_to_none=True)
    outputs = sample.call(model)
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    losses = [t.abs().square().mean() for t in tensors if t.requires_grad]
    if not losses:
        raise ValueError("no output has a gradient: a training step needs a loss")
    torch.stack([loss.double() for loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
    return outputs


def step_of(training: bool) -> Step:
    """The call that is meant if none is given."""
    return training_step if training else inference_step


def survey(model: nn.Module, sample: Sample, step: Step, *, real: nn.Module | None = None) -> Survey:
    """Every operator of a call, without changing the model, its inputs or the generators.

    Runs on fake tensors, or on a copy where the call needs numbers, as ``.item()`` does.

    Args:
        real: what runs in the place of a copy, and may be changed.

    Raises:
        Exception: of whatever kind, if the model cannot be copied or fails on its inputs.
    """
    try:
        with fake_warnings_off(), fake(model, sample) as (shapes, inputs):
            return _surveyed(shapes, inputs, step)
    except Exception:  # it needs numbers, or cannot be copied so: the real run tells what is wrong
        device = next((t.device for t in sample.tensors() if t.device.type != "cpu"), None)
        with torch.random.fork_rng(devices=[] if device is None else [device], enabled=True):
            return _surveyed(copy_of(model) if real is None else real, sample.clone(), step)


def _surveyed(model: nn.Module, sample: Sample, step: Step) -> Survey:
    found = Survey(model)
    with _without_compiling(), found.modules_known(), found:
        step(model, sample)
    return found


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Run a compiled model as it is written."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def fake_warnings_off() -> Iterator[None]:
    """Silence tracebacks that fake tensors log before they raise."""
    with ExitStack() as restoring:
        for name in ("torch._subclasses.fake_tensor", "torch._subclasses.fake_impls"):
            logger = logging.getLogger(name)
            restoring.callback(logger.__setattr__, "disabled", logger.disabled)
            logger.disabled = True
        yield
