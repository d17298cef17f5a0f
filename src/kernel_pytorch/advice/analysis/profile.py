"""Where the time of a call goes: by submodule and by operator. Imports torch."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..sample import Sample
from .calls import synchronizer
from .runs import Step, step_of
from .survey import Survey

RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Calls and seconds in one run of the model."""

    calls: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Medians over the runs."""

    modules: dict[str, Spent]
    """By path, of the forward pass, with all that a submodule contains; "": the model."""
    operators: dict[str, Spent]
    """By name as "aten::mm", forward and backward, without the operators that one consists of."""


def profile(
    model: nn.Module,
    sample: Sample,
    *,
    training: bool = False,
    step: Step | None = None,
    device: torch.device | None = None,
    runs: int = RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> Profile:
    """Seconds by submodule, then by operator, in runs of their own.

    The calls run on ``model`` itself, which changes as calls change it: give a copy to keep it. The hooks
    are removed. Operators run one by one under a dispatch mode, which adds some microseconds to each and, on
    a GPU, waits for each.

    Raises:
        Exception: of whatever kind, if the model fails on the sample.
    """
    call = step or step_of(training)
    synchronize = synchronizer(device or torch.device("cpu"))
    modules: defaultdict[str, list[float]] = defaultdict(list)
    operators: defaultdict[str, list[float]] = defaultdict(list)
    calls: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for _ in range(runs):
        timed = _Modules(model, synchronize, clock)
        timed.run(call, sample.clone())
        calls = timed.calls
        for path, seconds in timed.seconds.items():
            modules[path].append(seconds)
    for _ in range(runs):
        found = Survey(model, synchronize, fast_path=True)
        inputs = sample.clone()
        with found:
            call(model, inputs)
        counts = Counter(operation.name for operation in found.operations)
        spent: Counter[str] = Counter()
        for operation in found.operations:
            spent[operation.name] += operation.seconds  # type: ignore[assignment]
        for name, seconds in spent.items():
            operators[name].append(seconds)
    return Profile(modules=_medians(modules, calls), operators=_medians(operators, counts))


def _medians(times: dict[str, list[float]], calls: Counter[str]) -> dict[str, Spent]:
    """Those of the last run; the longest first."""
    spent = {
        key: Spent(calls=calls[key], seconds=statistics.median(some))
        for key, some in times.items()
        if calls[key]
    }
    return dict(sorted(spent.items(), key=lambda item: -item[1].seconds))


class _Modules:
    """Seconds of each submodule's forward pass in one run."""

    def __init__(self, model: nn.Module, synchronize: Callable[[], None], clock: Callable[[], float]) -> None:
        self._model, self._synchronize, self._clock = model, synchronize, clock
        self._started: dict[str, list[float]] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def run(self, call: Step, sample: Sample) -> None:
        handles = []
        try:
            for path, module in self._model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(path)))
                handles.append(
                    module.register_forward_hook(self._leave(path), prepend=True, always_call=True)
                )
            call(self._model, sample)
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> float:
        self._synchronize()
        return self._clock()

    def _enter(self, path: str) -> Callable[..., None]:
        started = self._started.setdefault(path, [])
        return lambda *_: started.append(self._now())

    def _leave(self, path: str) -> Callable[..., None]:
        started = self._started[path]

        def leave(*_: object) -> None:
            begin = started.pop()
            if torch._C._current_graph_task_id() == -1:  # else checkpointing repeats it in the backward pass
                self.seconds[path] += self._now() - begin
                self.calls[path] += 1

        return leave
