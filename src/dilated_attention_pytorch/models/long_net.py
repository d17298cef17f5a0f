"""LongNet (arXiv:2307.02486): transformers of dilated attention in MAGNETO's blocks (arXiv:2210.06423).

Letters: b batch, n sequence, e embedding, h query heads, h_kv key/value heads, d head dimension, f hidden
width of the feed-forward.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import dilated_attention
from ..core.linear import initialize, xavier_std
from ..core.masks import ignored_keys
from ..core.pattern import DilatedPattern
from ..core.validation import check_dense, check_positions
from ..multihead_dilated_attention import MultiheadDilatedAttention
from .generation import KVCache, check_sampling, sample

# attend(layer, query [b, n, h, d], key, value [b, n, h_kv, d]) -> [b, n, h, d]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


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
        object.__setattr__(self, "segment_lengths", self.pattern.segment_lengths)
        object.__setattr__(self, "dilation_rates", self.pattern.dilation_rates)

    @property
    def pattern(self) -> DilatedPattern:
        """The branches and heads of the attention."""
        return DilatedPattern(
            self.segment_lengths, self.dilation_rates, self.num_heads, num_kv_heads=self.num_kv_heads
        )


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


class _LongNet(nn.Module):
    is_causal: ClassVar[bool]

    def __init__(self, config: LongNetConfig) -> None:
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
        x: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """The normed last hidden state ``[b, n, e]`` of ``x [b, n, e]``; the rest is as for ``forward``."""
        c = self.config
        if key_padding_mask is not None:
            if attend is not None:
                raise ValueError(
                    "attend decides about masks itself: beside it key_padding_mask must be None, "
                    "and positions must say where the tokens are"
                )
            key_padding_mask = ignored_keys(key_padding_mask, x)
            # NaN there would be harmless to attention, but not to the gradients of the weights.
            x = x.masked_fill(key_padding_mask[..., None], 0)
        if positions is not None:
            check_positions(positions, x)
        elif key_padding_mask is not None:
            # A row's tokens are numbered as if they were alone, what it ignores comes after them.
            positions = key_padding_mask.argsort(dim=1, stable=True).argsort(dim=1)
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
                key_padding_mask=key_padding_mask,
                positions=ranks,
            )

        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        rotary = _rotary_table(positions, c.embed_dim // c.num_heads, c.rotary_base, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, partial(_attend_rotated, rotary, partial(attend or attend_alone, layer)))
        return self.norm(x)  # type: ignore[no-any-return]


class LongNetLM(_LongNet):
    """Causal language model over token ids, bytes for instance.

    Args:
        config: its shape.

    Raises:
        ValueError: ``config.vocab_size`` is None.
    """

    is_causal = True
    embedding: nn.Embedding

    def __init__(self, config: LongNetConfig) -> None:
        if config.vocab_size is None:
            raise ValueError(
                "vocab_size must be the number of token ids, got None: a LongNetEncoder takes embeddings"
            )
        super().__init__(config)
        self.head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        # Logits of variance 1: the first loss is log(vocab_size) + 1/2. Smaller logits learn more slowly,
        # and so does a head that shares the embedding's weight.
        initialize(self.head, config.embed_dim**-0.5)

    @classmethod
    def load(cls, run: str | os.PathLike[str], checkpoint: str | int = "last") -> LongNetLM:
        """The model of a run of ``longnet train``, on the CPU, of one process or of several.

        Args:
            run: the run's folder, or its name below ``runs``.
            checkpoint: ``"last"``, ``"best"`` (by held-out loss), or the step of one that was kept.

        Raises:
            ValueError: there is no such run or checkpoint, or it is damaged, or of another model.
        """
        from ..train.errors import CommandError  # training is the upper floor
        from ..train.weights import read_weights

        try:
            found, weights = read_weights(os.fspath(run), str(checkpoint))
            model = cls(LongNetConfig(**found["model_config"]))
            model.load_state_dict(weights)
        except (CommandError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"LongNetLM.load({os.fspath(run)!r}, {checkpoint!r}): {error}") from error
        return model

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each of ``tokens``.

        With ``key_padding_mask`` each row gets what its tokens get alone, wherever the padding is. The
        logits of ignored tokens mean nothing.

        Args:
            tokens: int64 ``[b, n]``; the whole sequence, or with ``positions`` and ``attend`` a shard of it.
            positions: int64 ``[n]`` or ``[b, n]``, distinct, not negative: where in the sequence the tokens
                are, for rotary positions and for the segments and dilation of the attention. What a token
                sees is earlier in ``tokens``. Default: 0 to n - 1, of each row's tokens that are not ignored.
            attend: attention of a layer, ``attend(layer, query [b, n, h, d], key, value [b, n, h_kv, d])``,
                around a ring for instance; default: causal dilated attention among ``tokens``.
            key_padding_mask: ``[b, n]``, tokens to ignore, as for :func:`dilated_attention`; not with
                ``attend``.

        Returns:
            ``[b, n, vocab_size]``.

        Raises:
            TypeError, ValueError: naming the argument and its values.
        """
        _check_tokens(tokens)
        return self.head(self.hidden(self.embedding(tokens), positions, attend, key_padding_mask))  # type: ignore[no-any-return]

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Continue ``tokens``: one forward over them, then one step for each new token.

        A step costs ``sum(w / r)`` keys a layer however long the text is. The global random state is
        neither read nor written.

        Rows of different lengths, told by ``key_padding_mask``, are continued as without their padding:
        those of one length together, and each length with the same ``seed``.

        Args:
            tokens: int64 ``[b, n]``, n at least 1.
            max_new_tokens: at least 0.
            temperature: the logits are divided by it; 0 takes the likeliest token.
            top_k: draw among the ``top_k`` likeliest only; None for all.
            seed: in [-2**63, 2**64); the same seed draws the same tokens, None draws afresh.
            key_padding_mask: ``[b, n]``, tokens to ignore, as for :func:`dilated_attention`.

        Returns:
            int64 ``[b, n + max_new_tokens]``, beginning with ``tokens``.

        Raises:
            TypeError, ValueError: naming the argument and its value.
            FloatingPointError: the logits are not finite.
        """
        if key_padding_mask is None:
            drawn = self.stream(tokens, max_new_tokens, temperature, top_k, seed)
            return torch.cat([tokens, *(token[:, None] for token in drawn)], dim=1)
        _check_tokens(tokens)
        kept = ~ignored_keys(key_padding_mask, tokens)
        lengths = kept.sum(dim=1)
        check_sampling(max_new_tokens, temperature, top_k, seed)
        new = tokens.new_empty(len(tokens), max_new_tokens)
        for length in set(lengths.tolist()):
            rows = lengths == length
            if length == 0:
                raise ValueError(
                    f"key_padding_mask must leave every row a token, got row {rows.nonzero()[0].item()} "
                    "without one"
                )
            prompts = tokens[rows][kept[rows]].view(-1, length)
            new[rows] = self.generate(prompts, max_new_tokens, temperature, top_k, seed)[:, length:]
        return torch.cat([tokens, new], dim=1)

    def stream(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Iterator[Tensor]:
        """The new tokens of :meth:`generate`, each int64 ``[b]``, as they are drawn."""
        c, vocab_size = self.config, self.head.out_features
        _check_tokens(tokens)
        if tokens.numel() == 0:
            raise ValueError(f"tokens must hold a prompt of at least one token, got {list(tokens.shape)}")
        outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
        if outside.numel():
            raise ValueError(f"tokens must be in [0, {vocab_size=}), got {outside[0].item()}")
        check_sampling(max_new_tokens, temperature, top_k, seed)
        generator = torch.Generator(tokens.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)

        def steps(new: Tensor) -> Iterator[Tensor]:
            prompt, start = new.shape[1], 0
            cache = KVCache(c.pattern, prompt + max_new_tokens)
            attend: Attend = cache.prefill
            for length in range(prompt, prompt + max_new_tokens):
                with torch.no_grad():  # not beyond the yield, where the caller goes on
                    positions = torch.arange(start, length, device=new.device)
                    x = self.hidden(self.embedding(new), positions, attend)
                    new = sample(self.head(x[:, -1]), temperature, top_k, generator)
                yield new[:, 0].clone()
                start, attend = length, partial(cache.step, length)

        return steps(tokens)


class LongNetEncoder(_LongNet):
    """Bidirectional encoder over token ids or embeddings.

    Args:
        config: its shape; ``vocab_size=None`` for embeddings alone.
    """

    is_causal = False

    def forward(
        self,
        inputs: Tensor,
        key_padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Encode.

        With ``key_padding_mask`` each row gets what its tokens get alone, wherever the padding is. The
        states of ignored tokens mean nothing, and nothing that their inputs hold reaches a result.

        Args:
            inputs: token ids int64 ``[b, n]``, or embeddings ``[b, n, e]``.
            key_padding_mask: ``[b, n]``, tokens to ignore, as for :func:`dilated_attention`; not with
                ``attend``.
            positions: int64 ``[n]`` or ``[b, n]``, distinct, not negative: where in the sequence the tokens
                are, for rotary positions and for the segments and dilation of the attention. Default: 0 to
                n - 1, of each row's tokens that are not ignored.
            attend: attention of a layer, ``attend(layer, query [b, n, h, d], key, value [b, n, h_kv, d])``,
                around a ring for instance; default: dilated attention among ``inputs``.

        Returns:
            ``[b, n, e]``, the normed last hidden state.

        Raises:
            TypeError, ValueError: naming the argument and its values.
        """
        c = self.config
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            check_dense("inputs", inputs)
            if inputs.dim() != 3 or inputs.shape[2] != c.embed_dim:
                raise ValueError(
                    f"inputs must be [batch, seq, embed_dim={c.embed_dim}], got {list(inputs.shape)}"
                )
            x = inputs
        elif self.embedding is None:
            got = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(
                f"inputs must be embeddings [batch, seq, embed_dim={c.embed_dim}], floating point, since "
                f"vocab_size=None means no token table; got {got}"
            )
        else:
            _check_tokens(inputs)
            x = self.embedding(inputs)
        return self.hidden(x, positions, attend, key_padding_mask)


def _check_tokens(tokens: Tensor) -> None:
    """Raise unless ``tokens`` is an int64 tensor ``[b, n]``."""
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"tokens must be an int64 tensor, got {got}")
    check_dense("tokens", tokens)
    if tokens.dim() != 2:
        raise ValueError(f"tokens must be [batch, seq], got {list(tokens.shape)}")


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
    return attend(_rotate(query, *rotary), _rotate(key, *rotary), value)
