"""The causal language model.

Letters: b batch, n sequence, h query heads, h_kv key/value heads, d head dimension.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..core.linear import initialize
from ..core.masks import ignored_keys
from .blocks import Attend, LongNetStack, check_tokens
from .config import LongNetConfig
from .generation import KVCache, check_sampling, sample


class LongNetLM(LongNetStack):
    """Causal language model over token ids, bytes for instance.

    Args:
        config: its shape.

    Raises:
        TypeError: ``config`` is no :class:`LongNetConfig`.
        ValueError: ``config.vocab_size`` is None.
    """

    is_causal = True
    embedding: nn.Embedding

    def __init__(self, config: LongNetConfig) -> None:
        super().__init__(config)
        if config.vocab_size is None:
            raise ValueError(
                "vocab_size must be the number of token ids, got None: a LongNetEncoder takes embeddings"
            )
        self.head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        # Logits of variance 1: the first loss is log(vocab_size) + 1/2. Smaller logits learn more slowly,
        # and so does a head that shares the embedding's weight.
        initialize(self.head, config.embed_dim**-0.5)

    @classmethod
    def load(cls, run_or_folder: str | os.PathLike[str], checkpoint: str | int = "last") -> LongNetLM:
        """The model of a run of ``longnet train``, on the CPU, of one process or of several.

        Args:
            run_or_folder: the run's folder, or its name below ``runs``.
            checkpoint: ``"last"``, ``"best"`` (by held-out loss), or the step of one that was kept.

        Raises:
            ValueError: there is no such run or checkpoint, or it is damaged, or of another model.
        """
        from ..train.errors import CommandError  # training is the upper floor
        from ..train.weights import read_weights

        if not (str(checkpoint) in ("last", "best") or str(checkpoint).isdecimal()):
            raise ValueError(f'checkpoint must be "last", "best" or a step, got {checkpoint!r}')
        if not isinstance(run_or_folder, (str, os.PathLike)):
            raise TypeError(f"run_or_folder must be the folder of a run or its name, got {run_or_folder!r}")
        path = os.fspath(run_or_folder)
        try:
            found, weights = read_weights(path, str(checkpoint))
            model = cls(LongNetConfig(**found["model_config"]))
            model.load_state_dict(weights)
        except (CommandError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"LongNetLM.load({path!r}, {checkpoint!r}): {error}") from error
        return model

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each of ``tokens``.

        With ``key_padding_mask`` each row gets what its tokens get alone, wherever the padding is. Ignored
        tokens may be any number, and their logits mean nothing.

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
        check_tokens(tokens)
        return self.head(self.hidden(tokens, positions, attend, key_padding_mask))  # type: ignore[no-any-return]

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

        Each row is continued as it would be without its padding: the rows of one length together, and each
        length with the same ``seed``.

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
        drawn = self.stream(tokens, max_new_tokens, temperature, top_k, seed, key_padding_mask)
        return torch.cat([tokens, *(token[:, None] for token in drawn)], dim=1)

    def stream(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The new tokens of :meth:`generate`, each int64 ``[b]``, as they are drawn.

        Arguments are checked, and memory for all of ``max_new_tokens`` is taken, at the start.
        """
        c, vocab_size = self.config, self.head.out_features
        check_tokens(tokens)
        if key_padding_mask is not None:
            kept = ~ignored_keys(key_padding_mask, tokens)
            lengths = kept.sum(dim=1)
            check_sampling(max_new_tokens, temperature, top_k, seed)
            empty = (lengths == 0).nonzero()
            if len(empty):
                raise ValueError(
                    f"key_padding_mask must leave every row a token, got row {empty[0].item()} without one"
                )
            streams = []
            for length in set(lengths.tolist()):
                rows = lengths == length
                prompts = tokens[rows][kept[rows]].view(-1, length)
                streams.append((rows, self.stream(prompts, max_new_tokens, temperature, top_k, seed)))

            def together() -> Iterator[Tensor]:
                for _ in range(max_new_tokens):
                    new = tokens.new_empty(len(tokens))
                    for rows, stream in streams:
                        new[rows] = next(stream)
                    yield new

            return together()
        if tokens.shape[1] == 0:
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
                    x = self.hidden(new, positions, attend)
                    new = sample(self.head(x[:, -1]), temperature, top_k, generator)
                yield new[:, 0].clone()
                start, attend = length, partial(cache.step, length)

        return steps(tokens)
