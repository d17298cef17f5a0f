"""int8 weights: torch's own dynamic quantization, and torchao's. Imports torch."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import nn

from ..facts import Expectation, Level, ModelFacts
from ..sample import Sample
from .listing import text_of
from .protocol import Base


def quantize_linears(model: nn.Module) -> None:
    """Weights of linear layers in int8, their inputs too in each call (by the range that they have)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao, which is slower on CPUs
        quantize: Any = torch.ao.quantization.quantize_dynamic
        quantize(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def quantize_weights(model: nn.Module) -> None:
    """Weights of linear layers in int8, by torchao."""
    with contextlib.redirect_stderr(io.StringIO()):  # it prints on import
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    quantize_(model, Int8WeightOnlyConfig())


class _Int8(Base):
    level: Level = "aggressive"
    lossless = False

    def why_not(self, facts: ModelFacts) -> str:
        """The reason that both kinds share; ""."""
        if facts.training:
            return "int8 weights cannot be trained"
        if not facts.structure.linears:
            return "no linear layers"
        if not facts.bytes_by_dtype.get("float32") and not facts.structure.gpu:
            return "the model has no float32 weights"
        return ""


class DynamicInt8(_Int8):
    """``torch.ao.quantization.quantize_dynamic``, on CPUs."""

    name = "int8"

    def applies(self, facts: ModelFacts) -> Expectation | str:
        if facts.structure.gpu:
            return "quantize_dynamic has kernels for CPUs only"
        return self.why_not(facts) or Expectation(
            gain=1.5, reason="2.4 to 4.2 where linear layers are all; error 0.025 to 0.033", seconds=3.0
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        quantize_linears(model)
        return model

    def source(self) -> list[str]:
        return [
            "import warnings",
            "import torch",
            "from typing import Any",
            "from torch import nn",
            *text_of(quantize_linears),
            "quantize_linears(model)",
        ]


class WeightInt8(_Int8):
    """torchao's weights in int8; products stay in floating point."""

    name = "int8 weights (torchao)"
    needs: tuple[str, ...] = ("package:torchao",)

    def applies(self, facts: ModelFacts) -> Expectation | str:
        return self.why_not(facts) or Expectation(
            gain=1.05,
            reason="0.14 to 0.8 on a CPU before compiling; less to read on GPUs; error 0.007",
            seconds=10.0,
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        quantize_weights(model)
        return model

    def source(self) -> list[str]:
        return [
            "import contextlib",
            "import io",
            "from torch import nn",
            *text_of(quantize_weights),
            "quantize_weights(model)",
        ]
