"""Averages of gradients that are sent in another format, both on the way to their sums and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from .blockwise import BLOCK, Blockwise, draw
from .cast import Cast
from .feedback import Feedback
from .rounds import Rounds, Turn, average


def send_coded(
    gradients: Mapping[int, Tensor], codec: Cast | Blockwise, feedback: Feedback, turn: Turn
) -> Rounds[None]:
    """Replace gradients by their averages, sent in the format of ``codec``.

    Block k of parameter i is summed by rank (i + k) mod P, which also keeps what its sums lose: P times that,
    since of what a rank offers next time one P-th is its part of the average.

    Args:
        gradients: by the number of the parameter.
        codec: the same on all ranks.
        feedback: of this rank.
        turn: of this rank.
    """
    offered = [feedback.offer(number, gradient) for number, gradient in gradients.items()]
    rows = torch.cat([pad(flat, (0, -flat.numel() % BLOCK)) for flat in offered]).view(-1, BLOCK)
    counts = [-(-flat.numel() // BLOCK) for flat in offered]
    device = rows.device
    summed_by = [
        (torch.arange(count, device=device) + number) % turn.size
        for number, count in zip(gradients, counts, strict=True)
    ]
    order = torch.cat(summed_by).argsort(stable=True)
    shares = torch.cat(summed_by).bincount(minlength=turn.size).tolist()
    rows = rows[order]

    first: list[Tensor | None] = [None] * turn.size
    second: Tensor | None = None
    if isinstance(codec, Blockwise):
        mine = [int((ranks == turn.rank).sum()) for ranks in summed_by]
        first = [*torch.split(_noise(gradients, counts, turn, 0, device)[order], shares)]
        second = _noise(gradients, mine, turn, 1, device)
    sent = [_encode(codec, part, noise) for part, noise in zip(torch.split(rows, shares), first, strict=True)]
    sizes = [share * BLOCK for share in shares]
    received = yield sent, [len(sent[turn.rank])] * turn.size
    mean = average([codec.decode(part, sizes[turn.rank], rows.dtype) for part in received])
    answer = _encode(codec, mean, second)
    received = yield [answer] * turn.size, [len(part) for part in sent]

    result, lost = torch.empty_like(rows), torch.empty_like(rows)
    result[order] = _decode(codec, received, sizes, rows)
    if feedback.enabled:
        missing = rows - _decode(codec, sent, sizes, rows)
        own = torch.split(missing, shares)[turn.rank].view(-1)
        own += turn.size * (mean - codec.decode(answer, sizes[turn.rank], rows.dtype))
        lost[order] = missing
    for (number, gradient), share, gone in zip(
        gradients.items(), torch.split(result, counts), torch.split(lost, counts), strict=True
    ):
        gradient.copy_(share.view(-1)[: gradient.numel()].view_as(gradient))
        feedback.keep(number, gone.view(-1)[: gradient.numel()])


def _encode(codec: Cast | Blockwise, rows: Tensor, noise: Tensor | None) -> Tensor:
    flat = rows.reshape(-1)
    return codec.encode(flat, noise) if isinstance(codec, Blockwise) else codec.encode(flat)


def _decode(codec: Cast | Blockwise, parts: list[Tensor], sizes: list[int], like: Tensor) -> Tensor:
    numbers = [codec.decode(part, size, like.dtype) for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(numbers).view_as(like)


def _noise(
    numbers: Mapping[int, Tensor], counts: list[int], turn: Turn, stage: int, device: torch.device
) -> Tensor:
    """Uniform in [0, 1), ``[blocks, BLOCK]``; depends on the parameter and on nothing about its bucket."""
    drawn = [
        draw((turn.seed, turn.step, number, turn.rank, stage), count * BLOCK, device)
        for number, count in zip(numbers, counts, strict=True)
    ]
    return torch.cat(drawn).view(-1, BLOCK)
