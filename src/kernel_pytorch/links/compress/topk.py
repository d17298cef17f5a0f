"""The largest numbers of a tensor, and where they are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .feedback import Feedback
from .rounds import Rounds, Turn
from .wire import from_bytes, to_bytes


def send_top_k(gradients: Mapping[int, Tensor], ratio: float, feedback: Feedback, turn: Turn) -> Rounds[None]:
    """Replace gradients by the averages of what is sent of them: of each the numbers of largest magnitude.

    Args:
        gradients: by the number of the parameter.
        ratio: of the numbers of a parameter that are sent, at least one.
        feedback: of this rank.
        turn: of this rank.
    """
    offered = [feedback.offer(number, gradient) for number, gradient in gradients.items()]
    counts = [len(flat) for flat in offered]
    begins = [sum(counts[:place]) for place in range(len(counts))]
    flat = torch.cat(offered)
    where = torch.cat([largest(x, ratio) + begin for x, begin in zip(offered, begins, strict=True)])
    message = pack(flat, where)
    received = yield [message] * turn.size, [len(message)] * turn.size
    total = torch.zeros_like(flat)
    for part in received:
        indices, values = unpack(part, len(where), len(flat), flat.dtype)
        total[indices] += values  # an index comes once from each rank
    total /= turn.size
    flat[where] -= flat[where]  # not 0: an infinity was not delivered
    for (number, gradient), mean, lost in zip(
        gradients.items(), torch.split(total, counts), torch.split(flat, counts), strict=True
    ):
        gradient.copy_(mean.view_as(gradient))
        feedback.keep(number, lost)


def largest(flat: Tensor, ratio: float) -> Tensor:
    """Indices of a share of the numbers, those of largest magnitude and NaN first; at least one, if any."""
    count = min(flat.numel(), max(1, math.ceil(ratio * flat.numel())))
    return flat.abs().topk(count, sorted=False).indices


def pack(flat: Tensor, indices: Tensor) -> Tensor:
    """Indices and the numbers there, as bytes."""
    return torch.cat([to_bytes(indices.to(_index_dtype(flat.numel()))), to_bytes(flat[indices])])


def unpack(sent: Tensor, count: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Indices and numbers.

    Args:
        sent: by :func:`pack`.
        count: of indices.
        size: number of elements that they are indices of.
        dtype: of the numbers.
    """
    index_dtype = _index_dtype(size)
    indices, values = torch.split(sent, [count * index_dtype.itemsize, count * dtype.itemsize])
    return from_bytes(indices, index_dtype).long(), from_bytes(values, dtype)


def _index_dtype(size: int) -> torch.dtype:
    return torch.int32 if size <= 2**31 else torch.int64
