"""What is known of a model before it is called. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .facts import ModelFacts, Roofline, Structure, unknown

if TYPE_CHECKING:
    from .prove.task import Task


def static_facts(task: Task, failed: str = "") -> ModelFacts:
    """Facts of which none needs a call.

    Args:
        failed: why the model cannot be called.
    """
    from .analysis.analyse import tensor_infos
    from .analysis.granted import granted_cpus, granted_memory
    from .analysis.parameters import parameters
    from .analysis.places import place_of_class

    held = parameters(task.model)
    why = unknown("the model did not run on its inputs")
    return ModelFacts(
        model=type(task.model).__name__,
        place=place_of_class(type(task.model)),
        device=str(task.device),
        training=task.options.training,
        loss="",
        inputs=tensor_infos(task.sample),
        parameters=held.parameters,
        trainable=held.trainable,
        buffers=held.buffers,
        bytes_by_dtype=held.bytes_by_dtype,
        tied=held.tied,
        threads=torch.get_num_threads(),
        granted_cpus=granted_cpus(),
        memory_limit=task.options.memory_bytes or granted_memory(task.device),
        call=why,
        noise=why,
        flops=why,
        traffic=why,
        bound=why,
        attained=why,
        roofline=Roofline(flops={}, memory_gb_s=None),
        peak=why,
        predicted_peak=why,
        modules=(),
        operators=(),
        attention_share=why,
        lengths=(),
        greatest_length=why,
        structure=Structure(),
        failed=failed,
    )
