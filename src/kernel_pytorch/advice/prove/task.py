"""What is proved: a model, its inputs and what one call of it is. Imports torch."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..facts import Options
from ..sample import Sample
from .leaves import tensors_of

Loss = Callable[[Any, Any], torch.Tensor]
"""(outputs, inputs) -> scalar; see :func:`inputs_of`."""
OptimizerFactory = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
Redraw = Callable[[int | None, int], Sample]
"""(length or None for the sample's own, seed) -> fresh inputs."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model and one call of it: forward without gradients, or a training step."""

    model: nn.Module
    sample: Sample
    options: Options = field(default_factory=Options)
    loss: Loss | None = None
    """None: the outputs' ``.loss``, else the mean square of the floating outputs."""
    optimizer: OptimizerFactory | None = None
    redraw: Redraw | None = None
    """None: the sample's own ``draw`` and ``at_length``."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    target: str = ""
    """FILE:NAME; "": the model's class."""

    def draw(self, length: int | None, seed: int) -> Sample:
        """Fresh inputs, of the sample's own length if ``length`` is None.

        Raises:
            ValueError: the inputs cannot be made of that length.
        """
        if self.redraw is not None:
            fresh = self.redraw(length, seed)
            return fresh.map(lambda tensor: tensor.to(self.device))
        sample = self.sample if length is None else self.sample.at_length(length)
        return sample.draw(seed)

    def loss_of(self, outputs: Any, sample: Sample) -> torch.Tensor:
        """The loss of a call.

        Raises:
            ValueError: there is neither a loss nor a floating output, or the loss is not one number.
        """
        if self.loss is not None:
            return _scalar(self.loss(outputs, inputs_of(sample)), "the loss")
        own = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
        if isinstance(own, torch.Tensor):
            return _scalar(own, "the outputs' .loss")
        outs = [t.abs() if t.is_complex() else t for t in floating(outputs) if t.requires_grad]
        squares = [t.square().mean() for t in outs]
        if not squares:
            raise ValueError("no output has a gradient: a training step needs a loss")
        return torch.stack([s.float() if s.dtype.itemsize < 4 else s for s in squares]).sum()

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer | None:
        """Of the model's parameters; None: the call has none.

        Raises:
            ValueError: the factory returns something else.
        """
        if self.optimizer is None or not self.options.training:
            return None
        made: object = self.optimizer(list(model.parameters()))
        if not isinstance(made, torch.optim.Optimizer):
            raise ValueError(f"the optimizer's factory must return a torch.optim.Optimizer, got {made!r:.40}")
        return made

    def loss_text(self, outputs: Any) -> str:
        """How the loss of a training step is computed, for the report."""
        if self.loss is not None:
            return getattr(self.loss, "__name__", type(self.loss).__name__)
        own = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
        return "the outputs' .loss" if isinstance(own, torch.Tensor) else "the mean square of the outputs"

    def step(self, model: nn.Module, sample: Sample, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """One call; its outputs. In training the gradients of before are dropped, those of the call stay."""
        if not self.options.training:
            with torch.no_grad():
                return sample.call(model)
        model.zero_grad(set_to_none=True)
        outputs = sample.call(model)
        self.loss_of(outputs, sample).backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
        return outputs


def step(task: Task, model: nn.Module, sample: Sample, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """:meth:`Task.step` as a function."""
    return task.step(model, sample, optimizer)


def inputs_of(sample: Sample) -> Any:
    """The inputs as a loss gets them.

    Keywords alone are a dict, one positional argument is itself, several are a tuple; with keywords beside
    them the dict follows as the tuple's last item.
    """
    if sample.kwargs:
        return (*sample.args, dict(sample.kwargs)) if sample.args else dict(sample.kwargs)
    return sample.args[0] if len(sample.args) == 1 else tuple(sample.args)


def floating(tree: Any) -> list[torch.Tensor]:
    """The floating and complex tensors of any nesting, dataclasses included."""
    return [t for t in tensors_of(tree) if t.is_floating_point() or t.is_complex()]


def _scalar(loss: Any, what: str) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = f"one of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else f"{loss!r:.40}"
        raise ValueError(f"{what} must be a tensor of one element, got {got}")
    return loss


def seed_all(seed: int) -> None:
    """Seed the generators of torch, ``random`` and, where it is loaded, NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def set_mode(model: nn.Module, training: bool) -> nn.Module:
    """The model in the mode of the task; submodules that differ from the root on purpose stay so."""
    return model if model.training == training else model.train(training)
