"""What the original gave, and whether a candidate gave the same. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..sample import Sample
from .compare import Comparison, compare_gradients, compare_outputs
from .leaves import tensors_of
from .limits import NotKeptError
from .rounds import Round


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the original gave on some inputs."""

    samples: tuple[Sample, ...]
    original: tuple[Round, ...]
    reference: tuple[Round, ...] | None
    """In float64; None: the original is its own reference."""

    def first(self) -> Expected:
        """The first round alone."""
        return Expected(
            samples=self.samples[:1],
            original=self.original[:1],
            reference=self.reference and self.reference[:1],
        )


@dataclass
class Evidence:
    """What was seen of a candidate so far: its worst errors, and how long it compiled."""

    error: float | None = None
    original_error: float | None = None
    compile_s: float | None = None
    """None: nothing was compiled."""

    def add(self, comparison: Comparison) -> None:
        """Take note of one comparison; NaN is the worst."""
        self.error = worst(self.error, comparison.error)
        self.original_error = worst(self.original_error, comparison.original_error)


def worst(first: float | None, second: float | None) -> float | None:
    """The greater of two errors, NaN above all; None counts for nothing."""
    known = [error for error in (first, second) if error is not None]
    return max(known, key=lambda error: math.inf if math.isnan(error) else error, default=None)


def judge(
    expected: Expected, got: Sequence[Round], lossless: bool, max_error: float, evidence: Evidence, where: str
) -> None:
    """Compare round by round.

    Raises:
        NotKeptError: outputs, gradients or buffers differ.
    """
    for number, (original, candidate) in enumerate(zip(expected.original, got, strict=True)):
        reference = expected.reference[number] if expected.reference else None
        after = f" after {number} step{'s' * (number > 1)} of SGD" if number and original.gradients else ""

        def see(comparison: Comparison, what: str, after: str = after) -> None:
            evidence.add(comparison)
            if not comparison.equal:
                raise NotKeptError(f"{what} differ{where}{after}: {comparison.reason}")

        def outputs(what: str, first: object, second: object, third: object) -> None:
            see(compare_outputs(first, second, third, lossless=lossless, max_error=max_error), what)

        outputs("outputs", reference and reference.outputs, original.outputs, candidate.outputs)
        gone = sorted(original.parameters - candidate.parameters)
        if gone:
            raise NotKeptError(f"parameter {gone[0]} is gone, and its gradient cannot be compared")
        if original.gradients:
            see(
                compare_gradients(
                    reference.gradients if reference else None,
                    original.gradients,
                    candidate.gradients,
                    lossless=lossless,
                    max_error=max_error,
                ),
                "gradients",
            )
        names = original.changed | (candidate.changed & original.buffers.keys())
        outputs("buffers", *(one and pick(one.buffers, names) for one in (reference, original, candidate)))


def pick(buffers: dict[str, Tensor], names: frozenset[str]) -> dict[str, Tensor | None]:
    """The named buffers in order; None: there is none of the name."""
    return {name: buffers.get(name) for name in sorted(names)}


def size_of(known: Expected) -> int:
    """Bytes of the tensors of results."""
    rounds = [*known.original, *(known.reference or ())]
    return sum(
        tensor.nbytes
        for one in rounds
        for tensor in (*tensors_of(one.outputs), *one.gradients.values(), *one.buffers.values())
    )
