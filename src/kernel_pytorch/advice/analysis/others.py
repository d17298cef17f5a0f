"""The facts of memory, of other lengths and of the structure. Imports torch."""

from __future__ import annotations

from dataclasses import replace

from ..facts import AttentionSite, Fact, LengthFacts, Structure, unknown
from ..prove.copies import copy_of
from .attempt import Attempt


def peak(attempt: Attempt) -> Fact:
    """Bytes that a call holds beyond parameters and inputs, measured.

    In training the peak of two steps from the start: gradients and the optimizer's state are made in them.
    """

    def measured() -> Fact:
        from .memory import peak_memory

        training = attempt.task.options.training
        model = copy_of(attempt.task.model) if training else attempt.model
        inputs = attempt.task.sample.clone()

        def run() -> None:
            for _ in range(2 if training else 1):
                attempt.step(model, inputs)

        return Fact(value=peak_memory(run, attempt.task.device), basis="measured")

    found = attempt.part("measuring memory", measured)
    return unknown(found) if isinstance(found, str) else found


def predicted_peak(attempt: Attempt) -> Fact:
    """The same, predicted without running."""

    def predicted() -> Fact:
        from .memory import predict_peak

        task = attempt.task
        return predict_peak(
            task.model,
            task.sample,
            training=task.options.training,
            optimizer=task.optimizer,
            loss=task.loss,
        )

    found = attempt.part("predicting memory", predicted, runs=not attempt.is_meta)
    return unknown(found) if isinstance(found, str) else found


def lengths(attempt: Attempt, limit: int | None) -> tuple[tuple[LengthFacts, ...], Fact]:
    """The facts at the task's other lengths, and the greatest length that fits in ``limit`` bytes."""

    def other_lengths() -> tuple[tuple[LengthFacts, ...], Fact]:
        from .lengths import lengths_facts

        return lengths_facts(attempt.task, limit, deadline=attempt.deadline, clock=attempt.clock)

    found = attempt.part("predicting other lengths", other_lengths, costly=True)
    if not isinstance(found, str):
        return found
    from .lengths import no_time

    return tuple(no_time(length, found) for length in attempt.task.options.lengths), unknown(found)


def structure_of(attempt: Attempt) -> tuple[Structure, tuple[str, ...]]:
    """What strategies look at, and what hindered looking."""

    def looked() -> Structure:
        from .structure import structure

        task = attempt.task
        return structure(attempt.model, task.sample, training=task.options.training, optimizer=task.optimizer)

    def attention() -> tuple[AttentionSite, ...]:
        from ..strategy.attention import find_attention

        task = attempt.task
        return tuple(find_attention(attempt.model, task.sample, training=task.options.training))

    found = attempt.part("looking at the structure", looked, runs=False)
    if isinstance(found, str):
        return Structure(), (found,)
    if found.attention or attempt.cannot:
        return found, ()
    sites = attempt.part("looking for attention", attention)
    return (found, (sites,)) if isinstance(sites, str) else (replace(found, attention=sites), ())
