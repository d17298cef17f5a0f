"""Inductor under settings of its own. Imports torch alone: its text goes to written files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def inductor_with(options: dict[str, Any], memory_budget: float = 1.0) -> Callable[..., Any]:
    """A backend of torch.compile: inductor, under settings that hold while it compiles.

    Args:
        options: of inductor.
        memory_budget: share of the activations that a training step may keep; the rest is computed again.
    """

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(activation_memory_budget=memory_budget):
            return compile_fx(graph, inputs, config_patches=options)

    return backend


def with_freezing() -> Any:
    """A context in which weights become constants of what is compiled without gradients.

    It must hold while Dynamo records the graph: as an option of inductor alone, freezing comes too late.
    """
    import torch._inductor.config as config

    return config.patch(freezing=True)
