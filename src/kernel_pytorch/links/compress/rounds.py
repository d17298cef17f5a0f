"""Averages over the ranks of a group, in rounds of messages. What several averages send goes in one message.

An average is a generator: it yields what it sends and is sent what it receives. Each rank sums its part of
the numbers, in the order of the ranks, whatever bucket they came in, and all get its sums: the same bits on
every rank, and in every run.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .wire import from_bytes, sum_dtype, to_bytes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
Round = tuple[list[Tensor], list[int]]
"""The bytes for each rank, and the number of those from each rank."""
Rounds = Generator[Round, list[Tensor], T]
"""Yields what it sends, is sent the bytes from each rank, and returns its result."""


@dataclass(frozen=True)
class Turn:
    """Who averages, and when."""

    rank: int
    size: int
    """Number of ranks."""
    step: int
    """Of the training; with the seed it decides about what is random."""
    seed: int


def carry_out(averages: Sequence[Rounds[None]], group: ProcessGroup) -> int:
    """Run averages side by side. All ranks of the group call this with the same, and nothing else uses it.

    Returns:
        Bytes that this rank sent to others.

    Raises:
        RuntimeError: a rank failed or did not answer within the group's timeout.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sent = 0
    running = [(average, next(average)) for average in averages]
    while running:
        lengths = [sum(len(sends[peer]) for _, (sends, _) in running) for peer in range(size)]
        expected = [sum(counts[peer] for _, (_, counts) in running) for peer in range(size)]
        message = torch.cat([sends[peer] for peer in range(size) for _, (sends, _) in running])
        received = message.new_empty(sum(expected))
        dist.all_to_all_single(received, message, expected, lengths, group=group)
        sent += sum(lengths) - lengths[rank]
        by_rank = [
            torch.split(part, [counts[peer] for _, (_, counts) in running])
            for peer, part in enumerate(torch.split(received, expected))
        ]
        still = []
        for number, (average, _) in enumerate(running):
            try:
                still.append((average, average.send([parts[number] for parts in by_rank])))
            except StopIteration:
                continue
        running = still
    return sent


def whole(flat: Tensor, turn: Turn) -> Rounds[Tensor]:
    """The average of flat numbers, sent as they are; summed in float32 at least."""
    parts = flat.tensor_split(turn.size)
    received = yield [to_bytes(part) for part in parts], [parts[turn.rank].nbytes] * turn.size
    mean = average([from_bytes(part, flat.dtype) for part in received])
    received = yield [to_bytes(mean.to(flat.dtype))] * turn.size, [part.nbytes for part in parts]
    return from_bytes(torch.cat(received), flat.dtype)


def average(parts: Sequence[Tensor]) -> Tensor:
    """The mean of tensors, in float32 at least, added in their order."""
    total = parts[0].to(sum_dtype(parts[0].dtype), copy=True)
    for part in parts[1:]:
        total += part
    return total.div_(len(parts))


def send_whole(gradients: Sequence[Tensor], turn: Turn) -> Rounds[None]:
    """Replace gradients by their averages, sent as they are."""
    mean = yield from whole(torch.cat([gradient.reshape(-1) for gradient in gradients]), turn)
    for gradient, part in zip(gradients, torch.split(mean, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
