"""An operation of this rank, carried out chunk by chunk."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...groups import Pending
from ..collectives.dense import check, check_op, check_writable, flat, write_back
from ..collectives.device import Ready
from ..collectives.groups import Group
from ..collectives.run import program, run
from ..collectives.steps import plan, split
from ..facts import MeasuredLinks
from ..methods import CommunicationPattern, Operation


class Piecewise:
    """The result of an all-reduce is in the tensor, that of others in a new one."""

    def __init__(self, operation: Operation, tensor: Tensor, op: str, group: Group) -> None:
        """
        Args:
            operation: which one.
            tensor: dense; [N, ...] but for an all-reduce. Not to be used until all chunks are done.
            op: sum, mean, max, min or product.
            group: of the participants.

        Raises:
            TypeError: a tensor that cannot be sent, or reduced.
            ValueError: an unknown ``op``, or rows that the participants cannot share equally.
        """
        check(tensor)
        self._operation, self._tensor, self._op, self._group = operation, tensor, op, group
        size, count = group.size, tensor.numel()
        if operation in (Operation.ALL_REDUCE, Operation.REDUCE_SCATTER):
            check_op(tensor, op)
        if operation is Operation.ALL_REDUCE:
            check_writable(tensor)
        elif tensor.dim() == 0:
            raise ValueError(f"tensor of {operation.value} must have rows, got a scalar")
        elif operation is not Operation.ALL_GATHER and len(tensor) % size:
            raise ValueError(f"tensor has {len(tensor)} rows, which {size} ranks cannot share equally")
        self._ready = Ready(tensor)
        self._source = flat(tensor)
        if operation is Operation.ALL_REDUCE:
            self._values = self._source
        elif operation is Operation.ALL_GATHER:
            self._values = self._source.new_empty(size * count)
            self._values[group.place * count : (group.place + 1) * count] = self._source
        else:
            self._values = self._source.clone()
        self._edges = [len(self._values) * place // size for place in range(size + 1)]

    @property
    def nbytes(self) -> int:
        """Of the whole vector."""
        return self._values.numel() * self._values.element_size()

    def run(self, pattern: CommunicationPattern, chunk: int, chunks: int) -> None:
        """Carry out a chunk. All participants call this, in the same order.

        Raises:
            GroupError: one of them failed or did not answer within the group's timeout.
        """
        group = self._group
        if group.size == 1:
            return
        with self._ready:
            if self._operation is Operation.ALL_TO_ALL:
                self._exchange(chunk, chunks)
                return
            pieces = plan(self._operation, pattern, self._edges, group.links.hosts, group.order, chunks)
            op = "sum" if self._op == "mean" else self._op
            run(program(pieces[chunk : chunk + 1], group.place), self._values, group, op)

    def _exchange(self, chunk: int, chunks: int) -> None:
        group = self._group
        assert group.group is not None
        part = self._edges[1]
        begin, end = split(part, chunks)[chunk]
        if begin == end:
            return
        peers = [place for place in range(group.size) if place != group.place]
        source, values = (
            each.view(torch.uint8).view(group.size, -1) for each in (self._source, self._values)
        )
        size = self._source.element_size()
        sends = [(group.seats[place], source[place, begin * size : end * size]) for place in peers]
        receives = [(group.seats[place], values[place, begin * size : end * size]) for place in peers]
        Pending(group.group, sends, receives).wait()

    def result(self) -> Tensor:
        """When all chunks are done.

        An all-reduce's ``tensor``; [P * N, ...] of an all-gather; this rank's rows of a reduce-scatter; of an
        all-to-all the rows for this rank, by rank.
        """
        tensor, size = self._tensor, self._group.size
        with self._ready:
            if self._op == "mean" and self._operation in (Operation.ALL_REDUCE, Operation.REDUCE_SCATTER):
                self._values /= size
            if self._operation is Operation.ALL_REDUCE:
                write_back(self._values, tensor)
                return tensor
            if self._operation is Operation.REDUCE_SCATTER:
                place = self._group.place
                mine = self._values[self._edges[place] : self._edges[place + 1]].clone()
                return mine.view(len(tensor) // size, *tensor.shape[1:])
            rows = len(tensor) * (size if self._operation is Operation.ALL_GATHER else 1)
            return self._values.view(rows, *tensor.shape[1:])


def among(group: Group, ranks: tuple[int, ...]) -> Group:
    """Some places of a group, which need no process group of their own: their messages go through its.

    The new places are in the order of ``ranks``, and in a ring host by host.
    """
    hosts: dict[int, list[int]] = {}
    for place, rank in enumerate(ranks):
        hosts.setdefault(group.host_of[rank], []).append(place)
    grouped = tuple(map(tuple, hosts.values()))
    return replace(
        group,
        place=ranks.index(group.place) if group.place in ranks else -1,
        ranks=tuple(group.ranks[rank] for rank in ranks),
        found=grouped,
        links=MeasuredLinks(hosts=grouped, basis=group.links.basis),
        order=tuple(place for places in grouped for place in places),
        seats=tuple(group.seats[rank] for rank in ranks),
    )
