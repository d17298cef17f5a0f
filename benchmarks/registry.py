"""The benchmarks by name, what they are given and what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


class UsageError(Exception):
    """An option that the benchmark cannot run with; the message is shown as it is."""


class NumericsError(Exception):
    """Numbers that are not right: nothing is printed but this."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark is given."""

    device: torch.device
    """Where to measure."""
    seq: int = 16_384
    """Sequence length, in tokens."""
    pairs: int = 21
    """Interleaved pairs behind each timing."""
    max_seconds: float = 300.0
    """Seconds after which a timing stops early, at least 3 pairs measured."""
    cases: tuple[str, ...] = ()
    """Run only the cases whose name contains one of these; empty = all."""

    def select(self, names: Iterable[str]) -> list[str]:
        """The names that ``cases`` lets through.

        Raises:
            UsageError: none is left.
        """
        names = list(names)
        selected = [name for name in names if not self.cases or any(part in name for part in self.cases)]
        if not selected:
            raise UsageError(
                f"--cases {' '.join(self.cases)}: no case has this in its name; cases: {', '.join(names)}"
            )
        return selected


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of results, its cells ready to print."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    """How to read it: a sentence or two under the title."""


Measure = Callable[[Options], list[Table]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A registered benchmark."""

    measure: Measure
    numerics: tuple[str, ...]
    """The tests, relative to the repository, that must pass before a figure is printed."""

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.measure.__doc__ or "").partition("\n")[0]


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str, *, numerics: tuple[str, ...]) -> Callable[[Measure], Measure]:
    """Register the decorated function under ``name``."""

    def register(measure: Measure) -> Measure:
        BENCHMARKS[name] = Benchmark(measure=measure, numerics=numerics)
        return measure

    return register
