"""One model looked at, for the inherited names. Imports torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from .analysis.places import place_of_class
from .facts import Finding, ModelFacts, Options
from .inherited import ModelAnalysisResult, analysis_fields
from .prove.copies import copy_of
from .prove.run import FACTS_S, FINDINGS_S, device_of, dtype_of, look, with_remarks
from .prove.session import Session
from .prove.state import preserved
from .prove.task import Task
from .recommend import hopes
from .sample import Sample
from .static import static_facts


def task_of(
    model: nn.Module, sample_input: Any, device: torch.device | str | None = None, *, training: bool = False
) -> Task:
    """One call of a model, on a device.

    Args:
        sample_input: a tensor, a tuple (positional) or a dict (by keyword); None: there are no inputs.
        device: None: where the model is. On another one a copy runs.
    """
    there = placed(model, device)
    where = device_of(there)
    sample, _ = (Sample() if sample_input is None else Sample.of(sample_input)).moved(where, dtype_of(there))
    options = Options(level="aggressive", training=training)
    return Task(model=there, sample=sample, options=options, device=where, target=type(model).__name__)


def placed(model: nn.Module, device: torch.device | str | None) -> nn.Module:
    """The model, or a copy of it on another device."""
    if device is None or torch.empty(0, device=device).device == device_of(model):
        return model
    return copy_of(model).to(device)


def analysis(model: nn.Module, sample_input: Any, device: torch.device | str | None) -> ModelAnalysisResult:
    """Facts, defects and what could be tried; without a sample those facts that need no call."""
    task = task_of(model, sample_input, device)
    if sample_input is None:
        facts = static_facts(task, "no sample input was given")
        return ModelAnalysisResult(**analysis_fields(facts, (), (), None))
    with preserved(model):
        session = Session(task)
        facts = session.facts(FACTS_S)
        found, unobserved = look(session.task, facts, FINDINGS_S)
    facts = with_remarks(facts, unobserved)
    return ModelAnalysisResult(**analysis_fields(facts, found, hopes(facts), sample_input))


def bottlenecks(model: nn.Module, sample_input: Any, facts: ModelFacts | None) -> tuple[Finding, ...]:
    """The defects of a model; none is known without a sample."""
    if sample_input is None or facts is None or facts.failed:
        return ()
    with preserved(model):
        return look(Session(task_of(model, sample_input), facts).task, facts, FINDINGS_S)[0]


def code(model: nn.Module) -> dict[str, Any]:
    """What can be said of a model without a call: its class, its submodules and where their code is."""
    kinds = {type(module) for module in model.modules()}
    facts = static_facts(task_of(model, None))
    return {
        "model": facts.model,
        "place": facts.place,
        "modules": dict(Counter(type(module).__name__ for module in model.modules())),
        "places": {
            kind.__name__: place_of_class(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__)
        },
        "parameters": facts.parameters,
        "trainable": facts.trainable,
        "buffers": facts.buffers,
        "bytes_by_dtype": facts.bytes_by_dtype,
        "tied": [list(names) for names in facts.tied],
    }
