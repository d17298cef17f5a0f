"""What generation needs besides the model: a cache of keys and values, and sampling.

Letters: b batch, n prompt, t tokens the cache has room for, h query heads, h_kv key/value heads, d head
dimension, (w, r) a branch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..attention import dilated_attention
from ..core.autocast import without_autocast
from ..core.pattern import DilatedPattern
from ..kernels.problem import accumulation_dtype


class KVCache:
    """Keys and values of the tokens so far, and causal dilated attention over them.

    First :meth:`prefill`, then :meth:`step` for one token after the other, each once per layer.

    Args:
        pattern: the branches.
        capacity: t, prompt and generated tokens together.
    """

    def __init__(self, pattern: DilatedPattern, capacity: int) -> None:
        self.pattern = pattern
        self.capacity = capacity
        self.keys: dict[int, Tensor] = {}  # of each layer, [b, t, h_kv, d]
        self.values: dict[int, Tensor] = {}

    def prefill(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the prompt's ``key``, ``value [b, n, h_kv, d]`` and attend with ``query [b, n, h, d]``."""
        batch, length, kv_heads, head_dim = key.shape
        for store, new in ((self.keys, key), (self.values, value)):
            store[layer] = new.new_empty(batch, self.capacity, kv_heads, head_dim)
            store[layer][:, :length] = new
        segment_lengths, dilation_rates = self.pattern.segment_lengths, self.pattern.dilation_rates
        return dilated_attention(query, key, value, segment_lengths, dilation_rates, is_causal=True)

    def step(self, position: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store and attend for the one token at ``position``: time and memory grow with w / r, not with t.

        Branch (w, r) serves the heads ``j`` with ``j % r == (position % w) % r``, a stride of the heads, and
        offers them a stride of its segment's positions.

        Args:
            position: of the token; all before it are in the cache.
            layer: whose cache.
            query: ``[b, 1, h, d]``.
            key, value: ``[b, 1, h_kv, d]``.

        Returns:
            ``[b, 1, h, d]``, 0 for a head that no branch serves.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys[:, position], values[:, position] = key[:, 0], value[:, 0]

        batch, _, heads, head_dim = query.shape
        accumulation = accumulation_dtype(query)
        scaled = query[:, 0].to(accumulation) * head_dim**-0.5
        out = torch.zeros_like(scaled)
        lse = scaled.new_full((batch, heads), float("-inf"))
        kv_head = torch.arange(heads, device=query.device) // (heads // keys.shape[2])
        for w, r in self.pattern.branches:
            segment = position - position % w  # where it starts
            offset = (position - segment) % r
            served = slice(offset, None, r)
            offered = slice(segment + offset, position + 1, r)
            k = keys[:, offered].index_select(2, kv_head[served]).to(accumulation)
            v = values[:, offered].index_select(2, kv_head[served]).to(accumulation)
            with without_autocast(query.device.type):  # it would round the scores
                scores = torch.einsum("bhd,bmhd->bhm", scaled[:, served], k)
                merged = torch.logaddexp(lse[:, served], scores.logsumexp(dim=-1))
                weights = (scores - merged[..., None]).exp()
                attended = torch.einsum("bhm,bmhd->bhd", weights, v)
            out[:, served] = out[:, served] * (lse[:, served] - merged).exp()[..., None] + attended
            lse[:, served] = merged
        return out[:, None].to(query.dtype)


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, seed: int | None) -> None:
    """Raise TypeError or ValueError, naming the argument of ``LongNetLM.generate`` and its value."""
    for name, value in (("max_new_tokens", max_new_tokens), ("top_k", top_k), ("seed", seed)):
        may_be_none = name != "max_new_tokens"
        if isinstance(value, bool) or not isinstance(value, int | None if may_be_none else int):
            raise TypeError(f"{name} must be int{' or None' if may_be_none else ''}, got {value!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 (or None for all), got {top_k}")
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be in [-2**63, 2**64), got {seed}")


def sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Draw one id from each row of ``logits [b, vocab]``: int64 ``[b, 1]``.

    Args:
        logits: unnormalised log-probabilities.
        temperature: they are divided by it; 0 takes the largest.
        top_k: draw among the ``top_k`` largest only; None for all.
        generator: the source of randomness, on the device of ``logits``.

    Raises:
        FloatingPointError: a row holds NaN or inf; a -inf beside finite numbers is never drawn.
    """
    if not logits.amax(dim=-1).isfinite().all():
        raise FloatingPointError("the logits are not finite")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits, ids = logits.double().topk(min(top_k or logits.shape[-1], logits.shape[-1]))
    # The largest is subtracted first: a small temperature would overflow.
    weights = ((logits - logits[:, :1]) / temperature).softmax(dim=-1)
    return ids.gather(1, torch.multinomial(weights, 1, generator=generator))
