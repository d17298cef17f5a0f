"""What old names give whose calls mean something else now; :mod:`dilated_attention_pytorch.legacy` warns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import models
from .core.memory import UnifiedMemoryPool
from .models import LongNetConfig

_POOL = UnifiedMemoryPool()


def get_global_memory_pool() -> UnifiedMemoryPool:
    """One pool for the whole process. No module of this package uses it."""
    return _POOL


class LongNet(models.LongNetEncoder):
    """:class:`LongNetEncoder`; the call of earlier versions is refused, and the error shows the new one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        _refuse_old_call("LongNet", "LongNetEncoder", _PARAMETERS, arguments, named)
        super().__init__(*arguments, **named)


class LongNetLM(models.LongNetLM):
    """:class:`LongNetLM`; the call of earlier versions is refused, and the error shows the new one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        _refuse_old_call("LongNetLM", "LongNetLM", {"num_tokens": 256, **_PARAMETERS}, arguments, named)
        super().__init__(*arguments, **named)


# Parameters of the old models, in order, with their defaults.
_PARAMETERS = {
    "d_model": 768,
    "nhead": 12,
    "num_encoder_layers": 12,
    "num_decoder_layers": 12,
    "dim_feedforward": 3072,
    "segment_lengths": (2048, 4096, 8192, 16384, 32768),
    "dilation_rates": (1, 2, 4, 6, 12),
    "dropout": 0.0,
    "activation": "relu",
    "layer_norm_eps": 1e-5,
}


def _refuse_old_call(
    name: str,
    new: str,
    parameters: Mapping[str, Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
) -> None:
    """Raise TypeError unless a configuration is given; show the one nearest to the old arguments."""
    if any(isinstance(value, LongNetConfig) for value in (*arguments, *named.values())):
        return
    old = {**parameters, **dict(zip(parameters, arguments, strict=False)), **named}
    fields = {
        "vocab_size": old.get("num_tokens"),
        "embed_dim": old["d_model"],
        "num_layers": old["num_encoder_layers"] + old["num_decoder_layers"],
        "num_heads": old["nhead"],
        "segment_lengths": tuple(old["segment_lengths"]),
        "dilation_rates": tuple(old["dilation_rates"]),
        "ffn_dim": old["dim_feedforward"],
        "layer_norm_eps": old["layer_norm_eps"],
    }
    config = ", ".join(f"{field}={value!r}" for field, value in fields.items())
    raise TypeError(
        f"{name} of earlier versions, an encoder with a decoder, is gone, and its weights fit no new model. "
        "LongNetLM (causal) and LongNetEncoder (sees both directions) are one stack of blocks; nearest is "
        f"{new}(LongNetConfig({config}))"
    )
