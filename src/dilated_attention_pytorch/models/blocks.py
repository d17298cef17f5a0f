"""What both models are made of: MAGNETO's blocks (arXiv:2210.06423) with rotary positions, and their stack.

Letters: b batch, n sequence, e embedding, h query heads, h_kv key/value heads, d head dimension, f hidden
width of the feed-forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import dilated_attention
from ..core.linear import initialize, xavier_std
from ..core.masks import ignored_keys
from ..core.validation import check_dense, check_positions
from ..multihead_dilated_attention import MultiheadDilatedAttention
from .config import LongNetConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Number of a layer, query ``[b, n, h, d]``, key and value ``[b, n, h_kv, d]`` to ``[b, n, h, d]``."""


class _FeedForward(nn.Module):
    def __init__(self, config: LongNetConfig, gamma: float) -> None:
        super().__init__()
        ffn_dim = 4 * config.embed_dim if config.ffn_dim is None else config.ffn_dim
        self.up = nn.Linear(config.embed_dim, ffn_dim)
        self.norm = nn.LayerNorm(ffn_dim, config.layer_norm_eps)
        self.down = nn.Linear(ffn_dim, config.embed_dim)
        for linear in (self.up, self.down):
            initialize(linear, gamma * xavier_std(linear))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(F.gelu(self.up(x))))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, config: LongNetConfig) -> None:
        super().__init__()
        gamma = math.sqrt(math.log(2 * config.num_layers))
        self.attention_norm = nn.LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.attention = MultiheadDilatedAttention(
            config.embed_dim,
            config.num_heads,
            segment_lengths=config.segment_lengths,
            dilation_rates=config.dilation_rates,
            num_kv_heads=config.num_kv_heads,
            layer_norm_eps=config.layer_norm_eps,
            gamma_init=gamma,
        )
        self.feed_forward_norm = nn.LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.feed_forward = _FeedForward(config, gamma)

    def forward(self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        attended, _ = self.attention(self.attention_norm(x), attend=attend)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class LongNetStack(nn.Module):
    """A table of tokens, unless ``config.vocab_size`` is None, and the blocks."""

    is_causal: ClassVar[bool]

    def __init__(self, config: LongNetConfig) -> None:
        if not isinstance(config, LongNetConfig):
            raise TypeError(f"config must be a LongNetConfig, got {config!r}")
        super().__init__()
        self.config = config
        self.embedding: nn.Embedding | None = None
        if config.vocab_size is not None:
            self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embed_dim, config.layer_norm_eps)
        if self.embedding is not None:
            self.embedding.reset_parameters()  # last, so that a seed gives the weights that it always gave

    def hidden(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """The normed last hidden state ``[b, n, e]`` of tokens int64 ``[b, n]`` or embeddings ``[b, n, e]``.

        The other arguments are those of ``forward``.
        """
        c = self.config
        ignored = None
        if key_padding_mask is not None:
            if attend is not None:
                raise ValueError(
                    "attend decides about masks itself: beside it key_padding_mask must be None, "
                    "and positions must say where the tokens are"
                )
            ignored = ignored_keys(key_padding_mask, inputs)
        x = inputs
        if not inputs.is_floating_point():
            assert self.embedding is not None
            x = self.embedding(inputs if ignored is None else inputs.masked_fill(ignored, 0))
        if ignored is not None:
            # NaN there would be harmless to attention, but not to the gradients of the weights.
            x = x.masked_fill(ignored[..., None], 0)

        if positions is not None:
            check_positions(positions, x)
        elif ignored is not None:
            # A row's tokens are numbered as if they were alone, what it ignores comes after them.
            positions = ignored.argsort(dim=1, stable=True).argsort(dim=1)
        ranks = positions
        if attend is None and positions is not None and _are_indices(positions):
            ranks = None

        def attend_alone(_layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return dilated_attention(
                query,
                key,
                value,
                c.segment_lengths,
                c.dilation_rates,
                is_causal=self.is_causal,
                key_padding_mask=ignored,
                positions=ranks,
            )

        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        rotary = _rotary_table(positions, c.embed_dim // c.num_heads, c.rotary_base, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, partial(_attend_rotated, rotary, partial(attend or attend_alone, layer)))
        return self.norm(x)  # type: ignore[no-any-return]


def check_tokens(tokens: Tensor, name: str = "tokens") -> None:
    """Raise unless ``tokens``, given as the argument ``name``, is an int64 tensor ``[b, n]``."""
    check_dense(name, tokens)
    if tokens.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {tokens.dtype}")
    if tokens.dim() != 2:
        raise ValueError(f"{name} must be [batch, seq], got {list(tokens.shape)}")


def _are_indices(positions: Tensor) -> bool:
    """Whether each row is known to be 0 to n - 1, so that attention need not gather."""
    if torch.compiler.is_compiling():
        return False
    try:
        return bool((positions == torch.arange(positions.shape[-1], device=positions.device)).all())
    except RuntimeError:  # no values: vmap, meta and fake tensors
        return False


def _rotary_table(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[..., n, 1, d / 2]`` of the angles of ``positions [..., n]``.

    They are float32 (float64 for float64 models), computed in float64: in float32 the angle at position one
    million is already wrong by 0.06 rad.
    """
    channel = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
    angle = positions[..., None, None] * base ** (-channel / head_dim)
    table = torch.float64 if dtype == torch.float64 else torch.float32
    return angle.cos().to(table), angle.sin().to(table)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channels (c, c + d/2) of ``x [b, n, h, d]`` by their angles (arXiv:2104.09864, section 3)."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)


def _attend_rotated(
    rotary: tuple[Tensor, Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    out = attend(_rotate(query, *rotary), _rotate(key, *rotary), value)
    if not isinstance(out, Tensor) or out.shape != query.shape:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"attend must return a tensor {list(query.shape)} like the query, got {got}")
    return out
