"""The shape of a LongNet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.pattern import DilatedPattern


@dataclass(frozen=True, kw_only=True)
class LongNetConfig:
    """Shape of a LongNet. ``LongNetConfig(**dataclasses.asdict(config))`` is ``config``, by way of JSON too.

    Raises:
        TypeError, ValueError: naming the field and its value.
    """

    vocab_size: int | None = 256
    """Number of token ids, 256 for bytes; None for a :class:`LongNetEncoder` of embeddings alone."""
    embed_dim: int = 256
    """Width e of the residual stream, a multiple of ``2 * num_heads``."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Query heads h of each block."""
    num_kv_heads: int | None = None
    """Key/value heads, a divisor of ``num_heads``; None for ``num_heads``."""
    segment_lengths: tuple[int, ...] = (512, 2048, 8192)
    """Segment length of each branch of the attention, in tokens."""
    dilation_rates: tuple[int, ...] = (1, 2, 4)
    """Dilation rate of each branch."""
    ffn_dim: int | None = None
    """Hidden width f of the feed-forward; None for ``4 * embed_dim``."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""
    rotary_base: float = 10_000.0
    """Base of the rotary positions' wavelengths (arXiv:2104.09864, section 3.2.2)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim"):
            value = getattr(self, name)
            if value is None and name in ("vocab_size", "num_kv_heads", "ffn_dim"):
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("layer_norm_eps", "rotary_base"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(
                "embed_dim must be a multiple of 2 * num_heads (rotary positions turn pairs of channels), "
                f"got embed_dim={self.embed_dim}, num_heads={self.num_heads}"
            )
        pattern = self.pattern
        object.__setattr__(self, "segment_lengths", pattern.segment_lengths)
        object.__setattr__(self, "dilation_rates", pattern.dilation_rates)

    @property
    def pattern(self) -> DilatedPattern:
        """The branches and heads of the attention."""
        return DilatedPattern(
            self.segment_lengths, self.dilation_rates, self.num_heads, num_kv_heads=self.num_kv_heads
        )
