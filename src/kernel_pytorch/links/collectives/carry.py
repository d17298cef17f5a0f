"""Carrying out collectives one after the other, each by the pattern that is asked for or found fastest.

On the one thread that posts on the group.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ...groups import Pending
from ..compress.codec import Codec, codec_for
from ..methods import PATTERNS, CommunicationPattern, CompressionMethod, Operation
from . import flat
from .choosing import Choosing, worth_it
from .counters import Call, Counters, bucket
from .groups import Group
from .plans import Planned, Plans, Shape
from .run import Sent, Wire, run
from .settings import Settings


class Carrier:
    """Of one group."""

    def __init__(self, group: Group, settings: Settings) -> None:
        self.group, self.settings, self.counters = group, settings, Counters()
        self._codecs: dict[CompressionMethod, Codec] = {}
        self._plans = Plans(group, settings.chunk_bytes, settings.overlap)
        self._choosers: dict[tuple[object, ...], Choosing] = {}

    def regroup(self, group: Group) -> None:
        """Go on with another group, or other links: what was chosen is chosen anew."""
        self.group = group
        self._plans = Plans(group, self.settings.chunk_bytes, self.settings.overlap)
        self._choosers = {}

    def carry(
        self,
        operation: Operation,
        values: Tensor,
        edges: Sequence[int],
        op: str = "sum",
        pattern: CommunicationPattern | None = None,
        why: str | None = None,
    ) -> None:
        """Carry out a collective on a flat vector, of which place p owns ``edges[p]`` to ``edges[p + 1]``.

        Args:
            operation: not ALL_TO_ALL.
            op: sum, max, min or product.
            pattern: default: that of the settings.
            why: the reason that is counted; default: that of the choice.

        Raises:
            GroupError: a rank failed or did not answer.
        """
        pattern = pattern or self.settings.pattern
        key = operation, values.dtype, bucket(values.nbytes), op == "sum", pattern
        choosing = self._choosers.get(key)
        if choosing is None:
            choosing = self._choosing(operation, values, edges, op, pattern)
            self._choosers[key] = choosing
        choice = choosing.next()
        compression = choosing.compression
        planned = self._planned(operation, choice.pattern, values, edges, compression)
        begin = time.perf_counter()
        sent = self._run(operation, choice.pattern, values, op, planned, compression)
        seconds = time.perf_counter() - begin
        choosing.took(seconds, self.group, values.device)
        self.counters.add(
            Call(
                operation=operation,
                dtype=str(values.dtype).removeprefix("torch."),
                nbytes=values.nbytes,
                pattern=choice.pattern,
                compression=compression,
                reason=why or f"{choice.reason}{choosing.note}",
                seconds=seconds,
                expected_s=planned.expected_s,
                sent_bytes=sent.to_all,
                sent_between_hosts_bytes=sent.to_other_hosts,
            )
        )

    def exchange(self, sends: Sequence[Tensor], receives: Sequence[Tensor]) -> None:
        """Send a tensor to each place and receive one from each.

        Raises:
            GroupError: a rank failed or did not answer.
        """
        group, begin = self.group, time.perf_counter()
        assert group.group is not None
        mine = group.place
        receives[mine].copy_(sends[mine])
        others = [place for place in range(group.size) if place != mine]
        Pending(
            group.group,
            [(group.seats[p], sends[p].view(torch.uint8)) for p in others if sends[p].numel()],
            [(group.seats[p], receives[p].view(torch.uint8)) for p in others if receives[p].numel()],
        ).wait()
        away = [place for place in others if group.host_of[place] != group.host_of[mine]]
        self.counters.add(
            Call(
                operation=Operation.ALL_TO_ALL,
                dtype=str(sends[mine].dtype).removeprefix("torch."),
                nbytes=sum(tensor.nbytes for tensor in sends),
                pattern=None,
                compression=CompressionMethod.NONE,
                reason="each rank sends to each",
                seconds=time.perf_counter() - begin,
                expected_s=None,
                sent_bytes=sum(sends[place].nbytes for place in others),
                sent_between_hosts_bytes=sum(sends[place].nbytes for place in away),
            )
        )

    def _choosing(
        self,
        operation: Operation,
        values: Tensor,
        edges: Sequence[int],
        op: str,
        pattern: CommunicationPattern,
    ) -> Choosing:
        wanted = self.settings.compression
        if operation is not Operation.ALL_REDUCE or op != "sum":
            wanted = CompressionMethod.NONE
        if not values.dtype.is_floating_point or values.element_size() < 4:
            wanted = CompressionMethod.NONE
        patterns = [pattern] if pattern is not CommunicationPattern.ADAPTIVE else self._candidates(False)
        raw = self._expected(operation, patterns, values, edges, CompressionMethod.NONE)
        if wanted is CompressionMethod.NONE:
            return Choosing(raw, CompressionMethod.NONE)
        only = "as asked for"
        method = CompressionMethod.BF16 if wanted is CompressionMethod.ADAPTIVE else wanted
        if pattern is CommunicationPattern.ADAPTIVE:
            patterns = self._candidates(True)
            only = "of what is compressed it sends the least between hosts"
        elif pattern is CommunicationPattern.HIERARCHICAL and len(self.group.links.hosts) == 1:
            patterns = []
        if not patterns:
            return Choosing(raw, CompressionMethod.NONE, "; not compressed: all ranks are on one host")
        encoded = self._expected(operation, patterns, values, edges, method)
        if wanted is not CompressionMethod.ADAPTIVE:
            return Choosing(encoded, method, only=only)
        worth, why = worth_it(raw, encoded, self.group.links, self.settings.compress_below_gbit_s)
        if worth:
            return Choosing(encoded, method, why, only)
        return Choosing(raw, CompressionMethod.NONE, why)

    def _candidates(self, compressed: bool) -> list[CommunicationPattern]:
        if compressed:
            if len(self.group.links.hosts) == 1:
                return []
            # Of what is encoded, HIERARCHICAL sends the least, and the others all send the same.
            hierarchical = CommunicationPattern.HIERARCHICAL
            return [hierarchical if self.settings.hierarchical else CommunicationPattern.RING]
        # Where nothing is known, the first is used while the others' times are agreed on.
        several = len(self.group.links.hosts) > 1
        patterns: list[CommunicationPattern] = sorted(
            PATTERNS, key=lambda p: (p is CommunicationPattern.HIERARCHICAL) != several
        )
        if not self.settings.hierarchical:
            patterns.remove(CommunicationPattern.HIERARCHICAL)
        return patterns

    def _expected(
        self,
        operation: Operation,
        patterns: Sequence[CommunicationPattern],
        values: Tensor,
        edges: Sequence[int],
        compression: CompressionMethod,
    ) -> dict[CommunicationPattern, float | None]:
        return {
            pattern: self._planned(operation, pattern, values, edges, compression).expected_s
            for pattern in patterns
        }

    def _planned(
        self,
        operation: Operation,
        pattern: CommunicationPattern,
        values: Tensor,
        edges: Sequence[int],
        compression: CompressionMethod,
    ) -> Planned:
        wire_bytes = None
        if compression is not CompressionMethod.NONE:
            wire_bytes = self._codec(compression).nbytes(1 << 16) / (1 << 16)
        return self._plans.of(
            Shape(
                operation=operation,
                pattern=pattern,
                edges=tuple(edges),
                element_bytes=values.element_size(),
                wire_bytes=wire_bytes,
                whole=self._is_torchs(operation, pattern, values, compression),
            )
        )

    def _run(
        self,
        operation: Operation,
        pattern: CommunicationPattern,
        values: Tensor,
        op: str,
        planned: Planned,
        compression: CompressionMethod,
    ) -> Sent:
        group = self.group
        if self._is_torchs(operation, pattern, values, compression):
            assert group.group is not None
            flat.all_reduce(values, group.group, op)
            return planned.sent(values.element_size(), group)
        wire = None
        if compression is not CompressionMethod.NONE:
            hosts = self._plans.host_of(pattern)
            wire = Wire(codec=self._codec(compression), host_of=hosts)
        return run(planned.program, values, group, op, wire)

    def _is_torchs(
        self,
        operation: Operation,
        pattern: CommunicationPattern,
        values: Tensor,
        compression: CompressionMethod,
    ) -> bool:
        return (
            operation is Operation.ALL_REDUCE
            and pattern is CommunicationPattern.RING
            and self.group.in_order
            and compression is CompressionMethod.NONE
            and flat.can_reduce(values.dtype, values.device)
        )

    def _codec(self, method: CompressionMethod) -> Codec:
        if method not in self._codecs:
            self._codecs[method] = codec_for(method, seed=self.group.place)
        return self._codecs[method]
