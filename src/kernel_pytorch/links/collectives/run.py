"""Carrying out the steps of a collective on this rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ...groups import GroupError
from ..compress.wire import sum_dtype
from .steps import Steps, Transfer

if TYPE_CHECKING:
    from ..compress.codec import Codec
    from .groups import Group

REDUCTIONS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": Tensor.add_,
    "max": lambda mine, theirs: torch.maximum(mine, theirs, out=mine),
    "min": lambda mine, theirs: torch.minimum(mine, theirs, out=mine),
    "product": Tensor.mul_,
}
_AHEAD = 8
"""Turns. A message whose receiver is ready when it is sent saves a round trip."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one place does: its transfers by turn. What begins in a turn ends ``patience`` - 1 turns later."""

    receives: tuple[tuple[Transfer, ...], ...]
    sends: tuple[tuple[Transfer, ...], ...]
    patience: int


@dataclass(frozen=True, kw_only=True)
class Wire:
    """What travels in another format."""

    codec: Codec
    host_of: Sequence[int]
    """By place. Between different hosts all is encoded."""


@dataclass(kw_only=True)
class Sent:
    """Bytes that this rank sent."""

    to_all: int = 0
    to_other_hosts: int = 0


def program(pieces: Sequence[Steps], place: int, *, overlap: bool = True) -> Program:
    """The part of a place in the steps of chunks, of :func:`.steps.plan`.

    Each chunk begins a turn later than the one before, so that they are in different steps at any time, on
    different links where the pattern uses several. Its steps are two turns apart: while a rank waits for the
    messages of one turn, those of the next are on their way, and no link is idle.

    Args:
        overlap: False: a chunk begins when the one before is done.
    """
    patience = 2 if overlap and len(pieces) > 1 else 1
    begins = [number if overlap else sum(map(len, pieces[:number])) for number in range(len(pieces))]
    turns = max((b + patience * (len(p) - 1) + 1 for b, p in zip(begins, pieces, strict=True)), default=0)
    receives: list[list[Transfer]] = [[] for _ in range(turns)]
    sends: list[list[Transfer]] = [[] for _ in range(turns)]
    for begin, steps in zip(begins, pieces, strict=True):
        for number, step in enumerate(steps):
            turn = begin + patience * number
            receives[turn] += [transfer for transfer in step if transfer.target == place]
            sends[turn] += [transfer for transfer in step if transfer.source == place]
    return Program(receives=tuple(map(tuple, receives)), sends=tuple(map(tuple, sends)), patience=patience)


def run(
    pieces: Program,
    tensor: Tensor,
    group: Group,
    op: str = "sum",
    wire: Wire | None = None,
) -> Sent:
    """Carry out a program on a tensor. All ranks of the group call this; nothing else may use it meanwhile.

    Sums of 16-bit floats are rounded to them after each addition, as torch's are.

    Args:
        pieces: of this rank's place.
        tensor: flat and contiguous, of the same number of elements and dtype on all ranks.
        group: whose places are those of the steps.
        op: a key of :data:`REDUCTIONS`; with ``wire`` sum.
        wire: how to encode; default: nothing.

    Raises:
        GroupError: a rank failed or did not answer within the group's timeout; the group is of no more use.
    """
    return _Run(pieces, tensor, group, op, wire).all()


class _Run:
    def __init__(self, pieces: Program, tensor: Tensor, group: Group, op: str, wire: Wire | None) -> None:
        self._pieces, self._tensor, self._op, self._wire = pieces, tensor, op, wire
        self._group, self._seats, self._ranks = group.group, group.seats, group.ranks
        self._host_of = group.host_of
        self._bytes, self._size = tensor.view(torch.uint8), tensor.element_size()
        self._singly = tensor.device.type == "cpu"
        """Others match what was posted in one batch."""
        self._sending: list[tuple[dist.Work, int, Tensor]] = []
        self._sent = Sent()

    def all(self) -> Sent:
        turns, ahead = len(self._pieces.receives), _AHEAD if self._singly else 0
        posted: list[list[_Receive]] = []
        for turn in range(turns + self._pieces.patience - 1):
            wanted = self._pieces.receives[len(posted) : turn + ahead + 1]
            ready = [[self._receive(transfer) for transfer in transfers] for transfers in wanted]
            sends = self._messages(self._pieces.sends[turn]) if turn < turns else []
            posted += self._post(ready, sends)
            done = turn - self._pieces.patience + 1
            if done >= 0:
                self._finish(posted[done])
                posted[done] = []
        for work, place, _ in self._sending:
            self._wait(work, place)
        return self._sent

    def _receive(self, transfer: Transfer) -> _Receive:
        if self._encoded(transfer):
            assert self._wire is not None
            nbytes = self._wire.codec.nbytes(transfer.end - transfer.begin)
            buffer = torch.empty(nbytes, dtype=torch.uint8, device=self._tensor.device)
        elif transfer.add:
            buffer = torch.empty_like(self._part(transfer)).view(torch.uint8)
        else:
            buffer = self._raw(transfer)
        return _Receive(transfer, buffer)

    def _messages(self, transfers: Sequence[Transfer]) -> list[tuple[int, Tensor]]:
        """The targets and what goes to them; what goes to several is encoded once."""
        payloads: dict[tuple[int, int], Tensor] = {}
        found = []
        for transfer in transfers:
            payload = self._raw(transfer)
            if self._encoded(transfer):
                key = transfer.begin, transfer.end
                if key not in payloads:
                    payloads[key] = self._encode(transfer)
                payload = payloads[key]
            found.append((transfer.target, payload))
            self._sent.to_all += payload.numel()
            if self._host_of[transfer.source] != self._host_of[transfer.target]:
                self._sent.to_other_hosts += payload.numel()
        return found

    def _encode(self, transfer: Transfer) -> Tensor:
        assert self._wire is not None
        part = self._part(transfer)
        payload = self._wire.codec.encode(part)
        if not transfer.add:  # the owner has what the others get
            part.copy_(self._wire.codec.decode(payload, len(part), part.dtype))
        return payload

    def _post(self, receives: list[list[_Receive]], sends: list[tuple[int, Tensor]]) -> list[list[_Receive]]:
        """Start the messages of a turn, and the receives of later ones where that helps."""
        if self._singly:
            for receive in (one for turn in receives for one in turn):
                receive.work = cast(
                    "dist.Work",
                    dist.irecv(
                        receive.buffer,
                        group=self._group,
                        group_src=self._seats[receive.transfer.source],
                    ),
                )
            for place, payload in sends:
                work = dist.isend(payload, group=self._group, group_dst=self._seats[place])
                self._sending.append((cast("dist.Work", work), place, payload))
            return receives
        flat = [one for turn in receives for one in turn]
        ops = [
            dist.P2POp(dist.irecv, one.buffer, group=self._group, group_peer=self._seats[one.transfer.source])
            for one in flat
        ] + [
            dist.P2POp(dist.isend, payload, group=self._group, group_peer=self._seats[place])
            for place, payload in sends
        ]
        works = dist.batch_isend_irecv(ops) if ops else []
        for one in flat:
            one.work = works[0] if len(works) == 1 else works[flat.index(one)]
        for number, (place, payload) in enumerate(sends):
            self._sending.append((works[0] if len(works) == 1 else works[len(flat) + number], place, payload))
        return receives

    def _finish(self, receives: Sequence[_Receive]) -> None:
        sums: dict[tuple[int, int], Tensor] = {}
        for one in receives:
            assert one.work is not None
            self._wait(one.work, one.transfer.source)
            part = self._part(one.transfer)
            if self._encoded(one.transfer):
                assert self._wire is not None
                exact = sum_dtype(part.dtype) if one.transfer.add else part.dtype
                values = self._wire.codec.decode(one.buffer, len(part), exact)
                if one.transfer.add:
                    key = one.transfer.begin, one.transfer.end
                    sums[key] = values.add_(sums.get(key, part))
                else:
                    part.copy_(values)
            elif one.transfer.add:
                REDUCTIONS[self._op](part, one.buffer.view(part.dtype))
        for (begin, end), total in sums.items():
            self._tensor[begin:end].copy_(total)

    def _encoded(self, transfer: Transfer) -> bool:
        if self._wire is None:
            return False
        return self._wire.host_of[transfer.source] != self._wire.host_of[transfer.target]

    def _part(self, transfer: Transfer) -> Tensor:
        return self._tensor[transfer.begin : transfer.end]

    def _raw(self, transfer: Transfer) -> Tensor:
        return self._bytes[transfer.begin * self._size : transfer.end * self._size]

    def _wait(self, work: dist.Work, place: int) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise GroupError(f"rank {self._ranks[place]} failed or did not answer: {reason}") from error


@dataclass
class _Receive:
    transfer: Transfer
    buffer: Tensor
    """Bytes."""
    work: dist.Work | None = None
