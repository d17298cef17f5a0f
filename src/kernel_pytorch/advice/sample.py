"""The inputs of a call: cloned, moved, drawn anew, at other lengths. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Sample:
    """Arguments of a model: positional and by keyword, in any nesting."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Sample:
        """From a tensor, a tuple or list (positional), or a dict (by keyword)."""
        if isinstance(value, Sample):
            return value
        if isinstance(value, Mapping):
            return cls((), dict(value))
        if isinstance(value, (tuple, list)):
            return cls(tuple(value))
        return cls((value,))

    def call(self, model: Callable[..., Any]) -> Any:
        """Call a model with these inputs."""
        return model(*self.args, **self.kwargs)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        """With each tensor changed."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, dict(self.kwargs)))
        return Sample(args, kwargs)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in order."""
        return [
            leaf
            for leaf in pytree.tree_leaves((self.args, dict(self.kwargs)))
            if isinstance(leaf, torch.Tensor)
        ]

    def clone(self) -> Sample:
        """Leaves of their own, with strides and requires_grad kept."""
        return self.map(lambda t: t.detach().clone().requires_grad_(t.requires_grad))
