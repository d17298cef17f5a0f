"""Small LongNet models."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import nn

from dilated_attention_pytorch.models import LongNetConfig, LongNetEncoder, LongNetLM

Model = TypeVar("Model", LongNetLM, LongNetEncoder)

SMALL = LongNetConfig(
    vocab_size=11,
    embed_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    segment_lengths=(4, 16),
    dilation_rates=(1, 3),
    ffn_dim=24,
)


def initial(model_class: type[Model], seed: int = 0, **changes: Any) -> Model:
    """A new model of ``SMALL`` with ``changes``."""
    torch.manual_seed(seed)
    return model_class(dataclasses.replace(SMALL, **changes))


def randomised(model_class: type[Model], seed: int = 0, **changes: Any) -> Model:
    """The same in float64 with other weights: a parameter at its initial 0 or 1 may not be used at all, and
    initial logits are alike.
    """
    model = initial(model_class, seed, **changes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.double()
