"""Settings that torch.compile has no option for. Imports torch alone: its text goes to written files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def inductor_with_budget(share: float) -> Callable[..., Any]:
    """Inductor as a backend that keeps a share of the activations and computes the rest again."""

    def backend(graph: Any, inputs: Any, options: Any = None) -> Any:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(activation_memory_budget=share):
            return compile_fx(graph, inputs, config_patches=options)

    return backend


def with_freezing() -> Any:
    """A context in which weights become constants of what is compiled without gradients.

    It must hold while Dynamo records the graph: as an option of inductor alone, freezing comes too late.
    """
    import torch._inductor.config as config

    return config.patch(freezing=True)
