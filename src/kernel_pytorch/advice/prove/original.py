"""The original and its float64 twin: what candidates are compared with. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..sample import Sample
from .candidate import Candidate, build
from .compare import compare_outputs
from .copies import double_of, widened_sample
from .dropout import without_dropout
from .judge import Evidence, Expected, judge, size_of
from .limits import NotKeptError, OutOfTimeError, describe
from .rounds import Round, run_rounds
from .task import Task

NUM_INPUTS = 3
"""Fresh inputs per length."""
CACHE_BYTES = 1 << 30
"""Results of the original that are kept for later candidates."""
MOST_LENGTHS = 3


class Original:
    """The unchanged model, on copies of its own."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.candidate: Candidate = build(task, [])
        twin = double_of(task.model, task.sample)
        self.double = None if isinstance(twin, str) else twin
        self.why_no_double = twin if isinstance(twin, str) else ""
        self._known: dict[tuple[int | None, bool], Expected] = {}
        self._lengths: tuple[int, ...] | None = None
        self._input_gradients: bool | None = None

    @property
    def reference(self) -> str:
        """What outputs are compared with, for the report."""
        if self.double is not None:
            return "the original in float64"
        return f"the original itself ({self.why_no_double})" if self.why_no_double else "the original itself"

    def random(self) -> str:
        """Why the model cannot be proved equal to anything: it differs from itself; "": it does not."""
        sample = self.task.draw(None, 0)
        with without_dropout(self.candidate.model, self.task.options.training):
            first, second = (run_rounds(self.task, self.candidate.model, [sample]) for _ in range(2))
        again = compare_outputs(first[0].outputs, None, second[0].outputs, lossless=True, max_error=0.0)
        return "" if again.equal else f"the model differs from itself under equal seeds: {again.reason}"

    def expected(self, length: int | None, *, input_gradients: bool, pause: Callable[[], None]) -> Expected:
        """What the original gives for fresh inputs of a length.

        Raises:
            Exception: what the model raises on them.
        """
        key = (length, input_gradients)
        if key in self._known:
            return self._known[key]
        task = self.task
        samples = tuple(task.draw(length, seed) for seed in range(NUM_INPUTS))
        with without_dropout(self.candidate.model, task.options.training):
            original = run_rounds(
                task, self.candidate.model, samples, input_gradients=input_gradients, pause=pause
            )
        known = Expected(samples=samples, original=tuple(original), reference=None)
        if self.double is not None:
            reference = self._reference(samples, original, input_gradients, pause)
            known = replace(known, reference=reference)
        if size_of(known) + sum(map(size_of, self._known.values())) <= CACHE_BYTES:
            self._known[key] = known
        return known

    def _reference(
        self,
        samples: Sequence[Sample],
        original: Sequence[Round],
        input_gradients: bool,
        pause: Callable[[], None],
    ) -> tuple[Round, ...] | None:
        """What the float64 twin gives, unless it fails or is farther from the original than rounding."""
        assert self.double is not None
        try:
            with without_dropout(self.double, self.task.options.training):
                reference = run_rounds(
                    self.task,
                    self.double,
                    samples,
                    rates=[one.rate for one in original],
                    input_gradients=input_gradients,
                    change=widened_sample,
                    pause=pause,
                )
            known = Expected(samples=tuple(samples), original=tuple(original), reference=tuple(reference))
            seen = Evidence()
            judge(known, original, False, self._rounding, seen, " from those in float64")
            if seen.error is not None and seen.original_error is None:
                raise NotKeptError("in float64 it computes something else")
        except OutOfTimeError:
            raise
        except NotKeptError as different:
            self.double, self.why_no_double = None, different.reason
        except Exception as error:
            self.double, self.why_no_double = None, f"in float64 it fails: {describe(error)}"
        else:
            return tuple(reference)
        return None

    @property
    def _rounding(self) -> float:
        """Beyond which a difference is not of rounding: the root of the coarsest dtype's epsilon.

        Random numbers are an example: with equal seeds, float64 draws others than float32.
        """
        dtypes = {p.dtype for p in self.candidate.model.parameters()} | {torch.float32}
        return math.sqrt(max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point))

    def lengths(self, pause: Callable[[], None]) -> tuple[int, ...]:
        """Other lengths at which the original runs: those asked for, else one about half as long."""
        if self._lengths is None:
            wanted = self.task.options.lengths[:MOST_LENGTHS]
            own = self.task.sample.length
            if not wanted and own is not None and own > 2:
                wanted = ((own // 2) | 1,)
            self._lengths = tuple(one for one in wanted if one != own and self._runs(one, pause))
        return self._lengths

    def _runs(self, length: int, pause: Callable[[], None]) -> bool:
        try:
            run_rounds(self.task, self.candidate.model, [self.task.draw(length, 0)], pause=pause)
        except OutOfTimeError:
            raise
        except Exception:
            return False  # the model is made for its own length, or the inputs are
        return True

    def input_gradients(self, pause: Callable[[], None]) -> bool:
        """Whether floating inputs can be given gradients in a training step."""
        if self._input_gradients is None:
            tensors = self.task.sample.tensors()
            self._input_gradients = any(t.is_floating_point() for t in tensors) and self._marked(pause)
        return self._input_gradients

    def _marked(self, pause: Callable[[], None]) -> bool:
        try:
            self.expected(None, input_gradients=True, pause=pause)
        except OutOfTimeError:
            raise
        except Exception:
            return False  # such a model computes something of an input that has no gradient
        return True
