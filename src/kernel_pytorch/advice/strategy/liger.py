"""Liger's Triton kernels for norms. Imports torch; Liger itself only when it is applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..analysis.structure import has_liger_kernel
from ..facts import Expectation, Level, ModelFacts
from ..sample import Sample
from .listing import assigned, text_of
from .protocol import Base


def use_liger(model: nn.Module, paths: list[str]) -> None:
    """Compute each of these norms, layer norms or RMS norms, by Liger's kernel; names stay."""
    from liger_kernel.transformers.functional import liger_layer_norm, liger_rms_norm

    def layer_norm(self: Any, x: torch.Tensor) -> Any:
        return liger_layer_norm(x, self.weight, self.bias, self.eps)

    def rms_norm(self: Any, x: torch.Tensor) -> Any:
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return liger_rms_norm(x, self.weight, eps, in_place=False)

    for path in paths:
        norm = model.get_submodule(path)
        kind, forward = type(norm), layer_norm if isinstance(norm, nn.LayerNorm) else rms_norm
        norm.__class__ = type(f"Liger{kind.__name__}", (kind,), {"forward": forward})


class Liger(Base):
    """One kernel for a norm, forward and backward."""

    name = "Liger"
    level: Level = "balanced"
    needs: tuple[str, ...] = ("gpu", "package:liger_kernel")

    def __init__(self) -> None:
        self._paths: list[str] = []

    def applies(self, facts: ModelFacts) -> Expectation | str:
        if not facts.structure.gpu:
            return "no GPU"
        if not facts.structure.liger:
            return "no submodule that Liger has a kernel for"
        return Expectation(
            gain=1.1, reason=f"one kernel for each {' and '.join(facts.structure.liger)}", seconds=8.0
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """
        Raises:
            ImportError: liger_kernel is not installed.
        """
        self._paths = [path for path, module in model.named_modules() if path and has_liger_kernel(module)]
        use_liger(model, self._paths)
        return model

    def source(self) -> list[str]:
        return [
            "import torch",
            "from typing import Any",
            "from torch import nn",
            *text_of(use_liger),
            *assigned("paths", self._paths),
            "use_liger(model, paths)",
        ]
