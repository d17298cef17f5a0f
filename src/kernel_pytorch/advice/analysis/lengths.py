"""A call at other lengths, predicted: does it fit, and up to which length? Imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..facts import Fact, LengthFacts, unknown
from ..prove.task import Task
from ..sample import Sample
from .fake import fake
from .flops import flops_of
from .memory import predict, without_numbers
from .places import raised
from .runs import fake_warnings_off
from .survey import Survey

MOST_TOKENS = 1 << 24
PRECISION = 64
"""The greatest length is found up to this fraction of it."""


def lengths_facts(
    task: Task,
    limit: int | None,
    *,
    deadline: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[tuple[LengthFacts, ...], Fact]:
    """The facts at the lengths that the task's options name, and the greatest length that fits.

    Args:
        limit: bytes; None: unknown.
        deadline: by ``clock``, after which nothing more is predicted.
    """
    known = []
    for length in task.options.lengths:
        late = clock() > deadline
        known.append(no_time(length, "no time was left") if late else length_fact(task, length, limit))
    return tuple(known), greatest_length(task, limit, deadline=deadline, clock=clock)


def length_fact(task: Task, length: int, limit: int | None) -> LengthFacts:
    """The facts at one length."""
    peak = predict(task, lambda: at_length(task, length))
    flops, share = _counted(task, length)
    return LengthFacts(length=length, peak=peak, flops=flops, attention_share=share, fits=fits(peak, limit))


def fits(peak: Fact, limit: int | None) -> bool | None:
    """Whether a peak is within a limit; None: it is not known, or only at least how high it is."""
    if peak.value is None or limit is None:
        return None
    if peak.value > limit:
        return False
    return None if peak.at_least else True


def greatest_length(
    task: Task,
    limit: int | None,
    *,
    deadline: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
    predicted: Callable[[int], Fact] | None = None,
) -> Fact:
    """The greatest length whose predicted peak is within the limit, up to 1/64 of it.

    Doubles or halves from the sample's own length, then bisects. A peak grows with the length.

    Args:
        limit: bytes; None: unknown.
        deadline: by ``clock``; what was found by then is "at least".
        predicted: the peak at a length; None: of the task.

    Returns:
        0 if no length fits; unknown with the reason if a peak cannot be predicted.
    """
    start = task.sample.length
    if limit is None:
        return unknown("the memory limit is unknown")
    if start is None:
        return unknown("the inputs have no length")
    peak_at = predicted or (lambda length: predict(task, lambda: at_length(task, length)))
    low, high, length, least = 0, MOST_TOKENS, max(1, start), False
    while high - low > max(1, low // PRECISION):
        if clock() > deadline:
            return (
                _found(low, at_least=True, why="the search stopped at its deadline")
                if low
                else unknown("no time was left")
            )
        peak = peak_at(length)
        if peak.value is None:
            if length == start:
                return peak
            why = f"length {length}: {peak.why}"
            return _found(low, at_least=True, why=why) if low else unknown(why)
        least = least or peak.at_least
        if peak.value <= limit:
            low = length
        else:
            high = length
        if low and high < MOST_TOKENS:
            length = (low + high) // 2
        else:
            length = min(2 * low, MOST_TOKENS - 1) if low else max(high // 2, 1)
            if length in (low, high):
                break
    if low >= MOST_TOKENS - 1:
        return _found(low, at_least=True, why="no limit was found")
    return _found(low, why="at most: the peaks are only known to be at least as high" if least else "")


def _found(length: int, *, at_least: bool = False, why: str = "") -> Fact:
    return Fact(value=length, basis="predicted", at_least=at_least, why=why)


def at_length(task: Task, length: int) -> Sample:
    """Inputs of a length: of the task's own function, else the sample's; under fake tensors.

    Raises:
        ValueError: the inputs cannot be made of that length.
    """
    return task.sample.at_length(length) if task.redraw is None else task.redraw(length, 0)


def _counted(task: Task, length: int) -> tuple[Fact, Fact]:
    try:
        with fake_warnings_off(), fake(task.model, Sample()) as (model, _):
            found = Survey(model)
            inputs = without_numbers(at_length(task, length))
            with found:
                task.step(model, inputs)
            count = flops_of(found)
    except Exception as error:
        none = unknown(f"not counted: {raised(error)}")
        return none, none
    why = "; ".join(count.remarks)
    least = bool(count.remarks)
    return (
        Fact(value=count.total, basis="counted", at_least=least, why=why),
        Fact(value=count.attention_share, basis="counted", why=why),
    )


def no_time(length: int, why: str) -> LengthFacts:
    """The facts at a length at which nothing was predicted."""
    none = unknown(why)
    return LengthFacts(length=length, peak=none, flops=none, attention_share=none, fits=None)
