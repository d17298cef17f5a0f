"""A copy of the model with changes applied, and how it is called. Imports torch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..sample import Sample
from ..strategy.protocol import Strategy
from .copies import copy_of
from .leaves import tensors_of
from .task import Task


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A changed copy, with its optimizer and number of threads."""

    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    """None: there is none, or inference."""
    threads: int | None
    """None: as many as the process has."""
    overwrites_outputs: bool
    compiled: bool
    """Whether a submodule is marked for torch.compile."""
    lossless: bool

    def call(self, sample: Sample, *, optimize: bool = True) -> Any:
        """One call with the candidate's own threads; its outputs, valid until the next call.

        Args:
            optimize: whether a training step ends with the optimizer's, if there is one.
        """
        self.begin()
        with threads(self.threads):
            return self.task.step(self.model, sample, self.optimizer if optimize else None)

    def begin(self) -> None:
        """Say that outputs of the last call are no longer needed, where calls overwrite them."""
        if self.overwrites_outputs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def build(task: Task, strategies: Sequence[Strategy]) -> Candidate:
    """A copy of the task's model with the strategies applied in order.

    Raises:
        Exception: what a strategy or the optimizer's factory raises.
    """
    model = copy_of(task.model)
    for strategy in strategies:
        model = strategy.apply(model, task.sample.clone())
    optimizer = task.make_optimizer(model)
    if optimizer is not None:
        for strategy in strategies:
            change = getattr(strategy, "change_optimizer", None)
            optimizer = change(optimizer) if change is not None else optimizer
    wanted = [getattr(strategy, "threads", None) for strategy in strategies]
    return Candidate(
        task=task,
        model=model,
        optimizer=optimizer,
        threads=next((number for number in reversed(wanted) if number is not None), None),
        overwrites_outputs=any(getattr(one, "overwrites_outputs", False) for one in strategies),
        compiled=is_compiled(model),
        lossless=all(strategy.lossless for strategy in strategies),
    )


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile was asked for any part of it; the code may not be built yet."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Run with a number of threads; None: with the present one."""
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep(tree: Any) -> Any:
    """A copy of outputs, in any nesting, that later calls cannot change and that holds no graph."""
    return copy.deepcopy(tree, {id(tensor): tensor.detach().clone() for tensor in tensors_of(tree)})


def forget_compiled_code() -> None:
    """Drop Dynamo's caches: they are by code object, and a ninth compilation of a class would run eagerly."""
    if "torch._dynamo" in sys.modules:
        import torch._dynamo

        torch._dynamo.reset()


def frames_compiled() -> int:
    """Frames that Dynamo has compiled in this process and not dropped from its count."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["frames"]["ok"])


@contextmanager
def strict_compiler(compiled: bool, *, eager_random: bool = False) -> Iterator[None]:
    """Compile or raise: no silent eager run; with random numbers as in eager mode if asked.

    Args:
        compiled: whether anything is compiled; if not, the compiler is not even loaded.
    """
    if not compiled:
        yield
        return
    import torch._dynamo
    import torch._inductor.config

    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, suppress_errors=False),
        torch._inductor.config.patch(fallback_random=eager_random),
    ):
        yield
