"""The contexts that a text is trained and evaluated on.

Letters: b contexts, n tokens of a context, N tokens of a text; tokens are bytes, or those of a tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .text_files import Text
from .tokenizer import TokenText


class Contexts(NamedTuple):
    """Parts of a text, and what a loss over them is divided by."""

    tokens: Tensor
    """``[b, n + 1]``: inputs ``[:, :-1]`` and targets ``[:, 1:]``."""
    target_bytes: Tensor
    """``[b, n]``: the bytes of the text that each target stands for."""

    @property
    def num_bytes(self) -> int:
        """The bytes of all targets. At least 1: a token may stand for none, if it shares a character."""
        return max(1, int(self.target_bytes.sum()))


def batch_of_step(text: Text, step: int, seed: int, batch_size: int, seq_len: int) -> Contexts:
    """The contexts of one step, a function of ``seed`` and ``step`` alone, so that resuming replays nothing.

    Args:
        text: ``[N]``, N > n.
        step: any whole number from 0.
        seed: any whole number from 0.
        batch_size: b.
        seq_len: n.
    """
    mixed = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
    starts: list[int] = torch.randint(len(text) - seq_len, (batch_size,), generator=generator).tolist()
    return _contexts(text, starts, seq_len)


def evenly_spaced(text: Text, count: int, seq_len: int) -> Contexts:
    """At most ``count`` contexts of the text ``[N]``, evenly spaced.

    Nothing is predicted twice; the last target of a context may be the first input of the next.
    """
    count = min(count, (len(text) - 1) // seq_len)
    last = len(text) - 1 - seq_len
    return _contexts(text, [last * i // max(count - 1, 1) for i in range(count)], seq_len)


def _contexts(text: Text, starts: Sequence[int], seq_len: int) -> Contexts:
    tokens = torch.stack([text[start : start + seq_len + 1] for start in starts])
    if not isinstance(text, TokenText):
        return Contexts(tokens, torch.ones((), dtype=torch.int32).expand(len(starts), seq_len))
    sizes = torch.stack([text.num_bytes[start + 1 : start + seq_len + 1] for start in starts])
    return Contexts(tokens, sizes)
