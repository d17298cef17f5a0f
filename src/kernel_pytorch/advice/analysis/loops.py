"""Finds Python loops that call equal small operators on parts of a tensor, or on experts. Imports torch.

A stack of layers is a loop too, but each round needs the one before: that one is left alone. A loop counts if
its rounds take slices of one tensor, or other weights on inputs that do not depend on the round before.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal

from . import blame, source
from .calls_watch import FunctionCall
from .observations import PythonLoop
from .operators import Run
from .storages import key_of, nbytes

LEAST_CALLS = 17
SMALL_BYTES = 2**20
"""Operands and results of an operator that takes about as long to start as to compute."""

_Key = tuple[str, tuple[int, ...]]
_Loop = tuple[str, int, int]
"""File, first and last line."""
_Over = Literal["slices", "weights"]


@dataclass
class _Event:
    key: _Key
    sites: tuple[tuple[int, str, int], ...]
    slices: tuple[tuple[int, int, int], ...]
    """Of each operand: its position, its storage, its offset there."""
    weights: tuple[tuple[int, int], ...]
    age: int


@dataclass
class Loops:
    """Observes calls."""

    run: Run
    events: list[_Event] = field(default_factory=list)

    def saw(self, call: FunctionCall) -> None:
        if not call.outputs or call.is_view:
            return
        if sum(nbytes(tensor) for tensor in (*call.inputs, *call.outputs)) > SMALL_BYTES:
            return
        slices, weights, age = [], [], 0
        for at, tensor in enumerate(call.inputs):
            origin, key = self.run.origins.get(tensor), key_of(tensor)
            if key is None:
                continue
            if origin is not None and origin.name:
                weights.append((key, int(tensor.storage_offset())))
            else:
                slices.append((at, key, int(tensor.storage_offset())))
                age = max(age, origin.age if origin is not None else 0)
        sites = tuple((site.serial, site.file, site.line) for site in call.sites)
        shape = tuple(call.outputs[0].shape)
        self.events.append(_Event((call.name, shape), sites, tuple(slices), tuple(weights), age))

    def found(self) -> tuple[PythonLoop, ...]:
        left = self.events
        calls: dict[_Loop, Counter[_Key]] = defaultdict(Counter)
        over: dict[_Loop, _Over] = {}
        for depth in range(max((len(event.sites) for event in left), default=0), 0, -1):
            rounds: dict[tuple[int, _Loop], list[_Event]] = defaultdict(list)
            for event in left:
                if len(event.sites) >= depth:
                    serial, file, line = event.sites[depth - 1]
                    around = source.loop(file, line)
                    if around is not None:
                        rounds[serial, (file, *around)].append(event)
            for (_, loop), events in rounds.items():
                kind = _over(events)
                if kind is not None:
                    over[loop] = kind
                    calls[loop].update(event.key for event in events)
                    inside = {id(event) for event in events}
                    left = [event for event in left if id(event) not in inside]
        return tuple(_loop(loop, calls[loop], kind) for loop, kind in over.items())


def _over(events: list[_Event]) -> _Over | None:
    """What the rounds of a loop are over, or None: nothing that could be done at once."""
    groups: dict[_Key, list[_Event]] = defaultdict(list)
    for event in events:
        groups[event.key].append(event)
    kinds = [_over_equal(group) for group in groups.values() if len(group) >= LEAST_CALLS]
    return "weights" if "weights" in kinds else "slices" if "slices" in kinds else None


def _over_equal(events: list[_Event]) -> _Over | None:
    offsets: dict[tuple[int, int], set[int]] = defaultdict(set)
    weights: set[tuple[int, int]] = set()
    for event in events:
        for at, key, offset in event.slices:
            offsets[(at, key)].add(offset)
        weights.update(event.weights[:1])
    if any(len(different) >= LEAST_CALLS for different in offsets.values()):
        return "slices"
    ages = [event.age for event in events]
    chained = all(later > earlier for earlier, later in itertools.pairwise(ages))
    return "weights" if len(weights) >= LEAST_CALLS and not chained else None


def _loop(where: _Loop, calls: Counter[_Key], over: _Over) -> PythonLoop:
    file, first, last = where
    (operator, shape), count = calls.most_common(1)[0]
    return PythonLoop(
        place=blame.place(file, first), last_line=last, operator=operator, calls=count, shape=shape, over=over
    )
