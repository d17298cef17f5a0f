"""Batch norms folded into the convolutions before them. Imports torch."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..analysis.patterns import conv_batch_norms
from ..analysis.structure import watch_copy
from ..facts import Expectation, ModelFacts
from ..sample import Sample
from .listing import assigned, text_of
from .protocol import Base


def fold_batch_norms(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Scale each convolution's weights as the batch norm after it would scale its output."""
    for convolution, batch_norm in pairs:
        layers: Any = model.get_submodule(convolution), model.get_submodule(batch_norm)
        model.set_submodule(convolution, fuse_conv_bn_eval(*layers))
        model.set_submodule(batch_norm, nn.Identity().eval())


class FoldedBatchNorms(Base):
    """In inference a batch norm is a product and a sum by channel, which the convolution can do."""

    name = "conv-bn folding"

    def __init__(self) -> None:
        self._pairs: list[tuple[str, str]] = []

    def applies(self, facts: ModelFacts) -> Expectation | str:
        pairs = facts.structure.conv_batch_norms
        if not pairs:
            return "no batch norm that alone reads a convolution's output"
        if facts.training:
            return "in training a batch norm depends on the batch"
        return Expectation(gain=1.04, reason=f"{len(pairs)} batch norms fewer; 1.04 on a CPU", seconds=3.0)

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """
        Raises:
            ValueError: a call of a copy of the model shows no such pair in inference.
        """
        watched = watch_copy(model, sample)
        pairs = () if watched is None else conv_batch_norms(model, watched)
        self._pairs = [pair for pair in pairs if not model.get_submodule(pair[1]).training]
        if not self._pairs:
            raise ValueError("no batch norm in inference that alone reads a convolution's output")
        fold_batch_norms(model, self._pairs)
        return model

    def source(self) -> list[str]:
        return [
            "from typing import Any",
            "from torch import nn",
            "from torch.nn.utils.fusion import fuse_conv_bn_eval",
            *text_of(fold_batch_norms),
            *assigned("pairs", self._pairs),
            "fold_batch_norms(model, pairs)",
        ]
