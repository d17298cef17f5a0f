"""Carrying out the steps of a collective on this rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .steps import Steps, Transfer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

REDUCTIONS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": Tensor.add_,
    "max": lambda mine, theirs: torch.maximum(mine, theirs, out=mine),
    "min": lambda mine, theirs: torch.minimum(mine, theirs, out=mine),
    "product": Tensor.mul_,
}


def run(pieces: Sequence[Steps], tensor: Tensor, group: ProcessGroup, op: str = "sum") -> None:
    """Carry out a plan on a tensor. All ranks of the group call this; nothing else may use it meanwhile.

    Each chunk begins a step later than the one before, so that they are in different steps at any time, on
    different links where the pattern uses several.

    Args:
        pieces: the steps of each chunk, of :func:`.steps.plan`.
        tensor: flat and contiguous, of the same number of elements and dtype on all ranks.
        group: of which ranks are the places of the steps.
        op: a key of :data:`REDUCTIONS`.

    Raises:
        RuntimeError: a rank failed or did not answer within the group's timeout.
    """
    reduce, rank = REDUCTIONS[op], dist.get_rank(group)
    waves = max((number + len(steps) for number, steps in enumerate(pieces)), default=0)
    for wave in range(waves):
        posted: list[tuple[dist.Work, Transfer, Tensor]] = []
        sends: list[dist.Work] = []
        for number, steps in enumerate(pieces):
            if not 0 <= wave - number < len(steps):
                continue
            for transfer in steps[wave - number]:
                part = tensor[transfer.begin : transfer.end]
                if transfer.target == rank:
                    buffer = torch.empty_like(part) if transfer.add else part
                    posted.append((_receive(buffer, group, transfer.source), transfer, buffer))
                elif transfer.source == rank:
                    sends.append(_send(part, group, transfer.target))
        for work, transfer, buffer in posted:
            work.wait()
            if transfer.add:
                reduce(tensor[transfer.begin : transfer.end], buffer)
        for work in sends:
            work.wait()


def _send(tensor: Tensor, group: ProcessGroup, place: int) -> dist.Work:
    return cast("dist.Work", dist.isend(tensor.view(torch.uint8), group=group, group_dst=place))


def _receive(tensor: Tensor, group: ProcessGroup, place: int) -> dist.Work:
    return cast("dist.Work", dist.irecv(tensor.view(torch.uint8), group=group, group_src=place))
