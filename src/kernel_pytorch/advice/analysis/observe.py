"""Runs copies of a model and notes what is wrong with how it runs. Imports torch.

Nothing is printed but what the model prints. The caller restores the process's state: seeds are set here, and
Dynamo's caches are empty afterwards.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..prove.copies import copy_of
from ..prove.leaves import tensors_of
from ..sample import Sample
from . import blame
from .calls_watch import CallWatch
from .constants import Constants
from .copies_made import Copies
from .graph_breaks import Phase, compiled_runs
from .host_syncs import HostSyncs
from .loops import Loops
from .observations import Differing, Observations
from .operator_observers import Float64, Layout, Random
from .operators import OperatorWatch, Origin, Run
from .places import raised

if TYPE_CHECKING:
    from ..prove.task import Task

LIMIT_S = 10.0
"""After this no other run of the model begins."""
_DIFFERENT = 1e-3
"""RMS of the difference, relative, from which outputs differ by more than the order of sums."""


def observe(
    task: Task, *, limit_s: float = LIMIT_S, clock: Callable[[], float] = time.monotonic
) -> Observations:
    """Run copies of a task's model; an exception of the model becomes a reason in ``unobserved``."""
    seen = _Observing(task, clock, clock() + limit_s)
    seen.part("the model", seen.run_eager)
    if not seen.unobserved:
        seen.part("the compiled model", seen.run_compiled)
    return Observations(
        **seen.found,
        optimizer_place=_place_of(task.optimizer),
        unobserved=tuple(seen.unobserved),
    )


class _Observing:
    def __init__(self, task: Task, clock: Callable[[], float], deadline: float) -> None:
        self.task, self.clock, self.deadline = task, clock, deadline
        self.found: dict[str, Any] = {}
        self.unobserved: list[str] = []

    def part(self, what: str, look: Callable[[], None]) -> None:
        if self.clock() >= self.deadline:
            self.unobserved.append(f"{what} was not examined: no time was left")
            return
        try:
            look()
        except (Exception, SystemExit) as error:
            self.unobserved.append(f"{what} could not be examined: {_why(error)}")

    def run_eager(self) -> None:
        """Two calls, the second of them watched; in inference another to compare."""
        model = _copy_of(self.task)
        with _eager():
            torch.manual_seed(0)
            first = self.task.step(model, self.task.sample.clone())
            if self.clock() >= self.deadline:
                self.unobserved.append("operators were not examined: the model is too slow")
                return
            outputs, random = self._watched(model)
            if not self.task.options.training:
                self.found["differing"] = self._differing(model, first, outputs, random)

    def _watched(self, model: nn.Module) -> tuple[Any, Random]:
        sample = self.task.sample.clone()
        run = Run(_run.__code__)
        run.stored(model)
        for tensor in sample.tensors():
            run.origins.set(tensor, Origin())
        float64, layout, random, constants = Float64(), Layout(), Random(), Constants()
        copies, syncs, loops = Copies(self.task.options.training), HostSyncs(), Loops(run)
        calls = CallWatch(run, (copies, syncs, loops))
        torch.manual_seed(1)
        with OperatorWatch(run, (float64, layout, random, constants, copies, syncs)), calls:
            outputs = _run(self.task, model, sample)
        calls.forget()
        copies.returned(tensors_of(outputs))
        self.found.update(
            float64=float64.found() if _is_lower(model, sample) else (),
            layout=layout.found(),
            rebuilt=constants.found(),
            copies=copies.found(),
            syncs=syncs.found(),
            loops=loops.found(),
        )
        return outputs, random

    def _differing(self, model: nn.Module, first: Any, second: Any, random: Random) -> Differing | None:
        difference = _difference(first, second)
        if difference <= _DIFFERENT:
            return None
        torch.manual_seed(0)
        same_seed = _difference(first, self.task.step(model, self.task.sample.clone()))
        drawn = next(((where, name) for where, name in random.drawn if where is not None), None)
        if drawn is None or same_seed > _DIFFERENT:
            place = blame.place_of_code(code) if (code := _forward_code(model)) is not None else ""
            return Differing(place=place, operator="", difference=difference)
        left = (name for name, part in model.named_modules() if part.training and _is_dropout(part))
        where, operator = drawn
        return Differing(
            place=blame.place(*where), operator=operator, difference=difference, submodule=next(left, "")
        )

    def run_compiled(self) -> None:
        """Calls under Dynamo: three of the sample's length, two of others."""
        model = _copy_of(self.task)
        done: list[int] = []
        breaks, recompiles = compiled_runs(model, self._calls(done))
        self.found.update(breaks=breaks, recompiles=recompiles, lengths=tuple(done))

    def _calls(self, done: list[int]) -> Iterator[tuple[Phase, Callable[[nn.Module], object]]]:
        task = self.task
        yield "first", partial(self._call, draw=task.sample.clone)
        for seed in (1, 2):
            if self.clock() >= self.deadline:
                self.unobserved.append("other inputs were not examined: no time was left")
                return
            yield "again", partial(self._other, what="other inputs", draw=partial(task.draw, None, seed))
        for length in _lengths(task):
            if len(done) == 2 or self.clock() >= self.deadline:
                return
            asked = f"length {length}" if length in task.options.lengths else ""  # another one is a guess
            ran = partial(done.append, length)
            yield "length", partial(self._other, what=asked, draw=partial(task.draw, length, 3), ran=ran)

    def _call(self, model: nn.Module, *, draw: Callable[[], Sample]) -> None:
        self.task.step(model, draw())

    def _other(
        self,
        model: nn.Module,
        *,
        what: str,
        draw: Callable[[], Sample],
        ran: Callable[[], None] = lambda: None,
    ) -> None:
        try:
            sample = draw()
            try:
                self.task.step(model, sample)
            except Exception:
                with _eager():
                    self.task.step(model, sample)  # its error is the shorter one
                raise
        except (Exception, SystemExit) as error:
            if what:
                self.unobserved.append(f"the model could not be run on {what}: {_why(error)}")
            raise RuntimeError(f"on {what}") from error
        ran()


def _run(task: Task, model: nn.Module, sample: Sample) -> Any:
    """The outermost frame of a watched run."""
    return task.step(model, sample)


def _copy_of(task: Task) -> nn.Module:
    """In the task's mode; of a model that torch.compile wrapped the model itself."""
    model = copy_of(task.model)
    model = getattr(model, "_orig_mod", model)
    training = task.options.training
    return model if model.training == training else model.train(training)


def _eager() -> ExitStack:
    """Runs what the user compiled as it is written."""
    stack = ExitStack()
    if "torch._dynamo" in sys.modules:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    return stack


def _lengths(task: Task) -> list[int]:
    """Lengths to try: those asked for up to the sample's own, shorter ones, those beyond."""
    own = task.sample.length
    asked = sorted(set(task.options.lengths))
    if own is None:
        return asked
    shorter = [own // 2, own // 4 * 3, own - 1, own - 2]
    ordered = [*(n for n in asked if n <= own), *shorter, *(n for n in asked if n > own)]
    return [n for n in dict.fromkeys(ordered) if n > 1 and n != own]


def _is_lower(model: nn.Module, sample: Sample) -> bool:
    """Whether the model is meant to compute in less than float64."""
    for all_of in (model.parameters(), sample.tensors()):
        dtypes = {tensor.dtype for tensor in all_of if tensor.is_floating_point()}
        if dtypes:
            return dtypes != {torch.float64}
    return True


def _difference(first: Any, second: Any) -> float:
    """Largest RMS of the difference of two outputs' tensors, relative to the first."""
    worst = 0.0
    for before, after in zip(tensors_of(first), tensors_of(second), strict=False):
        if before.shape != after.shape:
            return float("inf")
        if before.numel() == 0 or before.is_quantized:
            continue
        wide = torch.complex128 if before.is_complex() else torch.float64
        known = before.detach().to(wide)
        change = (known - after.detach().to(wide)).abs().nan_to_num(0.0, 0.0, 0.0)
        size = known.abs().nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt()
        worst = max(worst, float(change.square().mean().sqrt() / (size + 1e-30)))
    return worst


def _why(error: BaseException) -> str:
    """The exception and its line; of Dynamo's long ones the first line."""
    if type(error).__module__ != "torch._dynamo.exc":
        return raised(error)
    text = str(error)
    where = blame.in_traceback(text)
    first = next((line for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" + (f" ({blame.place(*where)})" if where else "")


def _is_dropout(part: nn.Module) -> bool:
    return "dropout" in type(part).__name__.lower()


def _forward_code(model: nn.Module) -> CodeType | None:
    code = getattr(type(model).forward, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _place_of(factory: Any) -> str:
    """FILE:LINE of a function of the user's."""
    code = getattr(factory, "__code__", None)
    if isinstance(code, CodeType) and blame.is_users(code.co_filename):
        return blame.place_of_code(code)
    return ""
