"""From names to a task. Runs the user's code. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from .facts import Options
from .inputs import Input
from .redraw import SEED, Inputs, seeded
from .sample import Sample
from .target import Named, TargetError, a_or_an, load_function

if TYPE_CHECKING:
    from .prove.task import Task


def load_task(
    target: Named,
    inputs: Sequence[Input],
    options: Options,
    *,
    loss: Named | None = None,
    optimizer: Named | None = None,
) -> tuple[Task, tuple[str, ...]]:
    """The task, and remarks on inputs that were moved or were arrays of NumPy.

    Raises:
        TargetError: something is not there, is not what is needed, or raises.
    """
    from .prove.run import device_of, dtype_of
    from .prove.task import Task

    model = load_model(target)
    device = device_of(model)
    dtype = dtype_of(model)
    drawn = Inputs(inputs)
    sample, remarks = moved(drawn.make(None, SEED), device, dtype)
    return Task(
        model=model,
        sample=sample,
        options=options,
        loss=None if loss is None else load_function(loss),
        optimizer=None if optimizer is None else load_function(optimizer),
        redraw=lambda length, seed: moved(drawn.redraw(length, seed), device, dtype)[0],
        device=device,
        target=str(target),
    ), remarks


def load_model(target: Named) -> nn.Module:
    """The model that FILE:NAME is, or that it returns when it is called under a seed.

    Raises:
        TargetError: it is neither.
    """
    made = target.load()
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise TargetError(
                f"{target} is {a_or_an(made)}: a torch.nn.Module or a function that returns one is needed"
            )
        made = seeded(SEED, lambda: target.call(load_function(target)))
    if not isinstance(made, nn.Module):
        raise TargetError(f"{target} returned {a_or_an(made)}, not a torch.nn.Module")
    return made


def moved(sample: Sample, device: torch.device, dtype: torch.dtype | None) -> tuple[Sample, tuple[str, ...]]:
    """:meth:`Sample.moved`, its errors as the user's.

    Raises:
        TargetError: an array holds no numbers.
    """
    try:
        return sample.moved(device, dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(f"--input cannot be moved to {device}: {error}") from error
