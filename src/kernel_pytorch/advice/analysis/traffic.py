"""Bytes that the operators of a call read and write. Imports torch."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ..sample import Sample
from .runs import Step, step_of, survey
from .survey import Survey


def traffic(
    model: nn.Module, sample: Sample, *, training: bool = False, step: Step | None = None
) -> dict[str, int]:
    """Bytes by operator, the most first: a lower bound, each operand and result counted once.

    The arguments and what it raises are those of :func:`.flops.count_flops`.
    """
    return traffic_of(survey(model, sample, step or step_of(training)))


def traffic_of(found: Survey) -> dict[str, int]:
    """Bytes of the operators noted, those that move none left out."""
    moved: Counter[str] = Counter()
    for operation in found.operations:
        if operation.bytes:
            moved[operation.name] += operation.bytes
    return dict(moved.most_common())
