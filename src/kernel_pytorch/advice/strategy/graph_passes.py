"""Changes of a model's graphs that compose with any backend of torch.compile. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .attention_rewrite import attention_backend

Pass = Callable[[fx.GraphModule], fx.GraphModule]
"""Changes a graph that Dynamo recorded, of torch's functions and methods, and returns it."""

NOTE = "_kernel_pytorch_graph_passes"


def add_pass(model: nn.Module, pass_: Pass) -> None:
    """Note on a model that each of its graphs is to be changed so, once, after the passes noted before.

    A copy of the model keeps the note. It takes effect where the model is compiled with :func:`backend_of`.
    """
    setattr(model, NOTE, (*(known for known in passes_of(model) if known is not pass_), pass_))


def passes_of(model: nn.Module) -> tuple[Pass, ...]:
    """The passes noted on a model, in their order."""
    return getattr(model, NOTE, ())


def backend_of(model: nn.Module, inner: str | Callable[..., Any] = "eager") -> Callable[..., Any]:
    """A backend for ``model.compile`` or ``torch.compile`` that runs the passes, then another backend.

    inner: the other's name or itself. With "inductor", ``mode`` and ``options`` of the compile call work too.
    """
    return attention_backend(inner, passes_of(model))
