"""Carrying out collectives one after the other, each by the pattern that is asked for or found fastest.

On the one thread that posts on the group.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...groups import Pending
from ..choose import Choice, Chooser
from ..compress.codec import Codec, codec_for
from ..facts import MeasuredLinks
from ..methods import CommunicationPattern, CompressionMethod, Operation
from . import flat
from .counters import Call, Counters, bucket
from .groups import Group
from .plans import Planned, Plans, Shape
from .run import Sent, Wire, run

PATTERNS = tuple(pattern for pattern in CommunicationPattern if pattern is not CommunicationPattern.ADAPTIVE)
_WORTH = 0.9
"""Of the expected time without compression: what it must be below for ADAPTIVE to compress."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to carry out what is not said call by call."""

    pattern: CommunicationPattern = CommunicationPattern.ADAPTIVE
    compression: CompressionMethod = CompressionMethod.NONE
    """Of all-reduces that sum floats of 32 bits or more. ADAPTIVE: BF16 or nothing, by expected time."""
    chunk_bytes: int = 64 << 20
    """Of the largest chunk."""
    overlap: bool = True
    """Whether a chunk begins before the one before is done."""
    hierarchical: bool = True
    """Whether ADAPTIVE may choose HIERARCHICAL."""
    compress_below_gbit_s: float = 100.0
    """ADAPTIVE compresses nothing where the slowest link between hosts has this rate or more."""


class Carrier:
    """Of one group."""

    def __init__(self, group: Group, settings: Settings) -> None:
        self.group, self.settings, self.counters = group, settings, Counters()
        self._codecs: dict[CompressionMethod, Codec] = {}
        self._plans = Plans(group, settings.chunk_bytes, settings.overlap)
        self._choosers: dict[tuple[object, ...], _Choosing] = {}

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
    ) -> None:
        """Carry out a collective on a flat vector, of which place p owns ``edges[p]`` to ``edges[p + 1]``.

        Args:
            operation: not ALL_TO_ALL.
            op: sum, max, min or product.
            pattern: default: that of the settings.

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
                reason=f"{choice.reason}{choosing.note}",
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
                pattern=CommunicationPattern.HIERARCHICAL,
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
    ) -> _Choosing:
        wanted = self.settings.compression
        if operation is not Operation.ALL_REDUCE or op != "sum":
            wanted = CompressionMethod.NONE
        if not values.dtype.is_floating_point or values.element_size() < 4:
            wanted = CompressionMethod.NONE
        patterns = [pattern] if pattern is not CommunicationPattern.ADAPTIVE else self._candidates(False)
        raw = self._expected(operation, patterns, values, edges, CompressionMethod.NONE)
        if wanted is CompressionMethod.NONE:
            return _Choosing(raw, CompressionMethod.NONE)
        method = CompressionMethod.BF16 if wanted is CompressionMethod.ADAPTIVE else wanted
        if pattern is CommunicationPattern.ADAPTIVE:
            patterns = self._candidates(True)
        if not patterns:
            return _Choosing(raw, CompressionMethod.NONE, "; not compressed: all ranks are on one host")
        encoded = self._expected(operation, patterns, values, edges, method)
        if wanted is not CompressionMethod.ADAPTIVE:
            return _Choosing(encoded, method)
        worth, why = _worth(raw, encoded, self.group.links, self.settings.compress_below_gbit_s)
        return _Choosing(encoded, method, why) if worth else _Choosing(raw, CompressionMethod.NONE, why)

    def _candidates(self, compressed: bool) -> list[CommunicationPattern]:
        if compressed:
            if len(self.group.links.hosts) == 1:
                return []
            # Of what is encoded, HIERARCHICAL sends the least, and the others all send the same.
            hierarchical = CommunicationPattern.HIERARCHICAL
            return [hierarchical if self.settings.hierarchical else CommunicationPattern.RING]
        # Where nothing is known, the first is used while the others' times are agreed on.
        several = len(self.group.links.hosts) > 1
        patterns = sorted(PATTERNS, key=lambda p: (p is CommunicationPattern.HIERARCHICAL) != several)
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
            and compression is CompressionMethod.NONE
            and flat.can_reduce(values.dtype, values.device)
        )

    def _codec(self, method: CompressionMethod) -> Codec:
        if method not in self._codecs:
            self._codecs[method] = codec_for(method, seed=self.group.place)
        return self._codecs[method]


class _Choosing:
    """A chooser, and the agreement that is on its way."""

    def __init__(
        self,
        expected_s: Mapping[CommunicationPattern, float | None],
        compression: CompressionMethod,
        note: str = "",
    ) -> None:
        self.compression, self.note = compression, note
        self._chooser = Chooser(expected_s)
        self._asked = len(expected_s) == 1
        self._only = next(iter(expected_s))
        self._agreement: tuple[dist.Work, Tensor] | None = None

    def next(self) -> Choice:
        if self._asked:
            return Choice(pattern=self._only, reason="as asked for")
        if self._chooser.due:
            assert self._agreement is not None
            work, times = self._agreement
            work.wait()
            self._chooser.agreed(times.tolist())
            self._agreement = None
        return self._chooser.next()

    def took(self, seconds: float, group: Group, device: torch.device) -> None:
        times = None if self._asked else self._chooser.took(seconds)
        if times is None:
            return
        mine = torch.tensor(times, device=device)
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=group.group, async_op=True)
        assert work is not None
        self._agreement = work, mine


def _worth(
    raw: Mapping[CommunicationPattern, float | None],
    encoded: Mapping[CommunicationPattern, float | None],
    links: MeasuredLinks,
    below_gbit_s: float,
) -> tuple[bool, str]:
    """Whether to compress, and why, to be added to a reason."""
    without = [seconds for seconds in raw.values() if seconds is not None]
    with_it = [seconds for seconds in encoded.values() if seconds is not None]
    if not without or not with_it:
        return False, "; not compressed: the links are not known"
    between = [link.gbit_s.value for link in links.links if link.source != link.target]
    if min(between, default=below_gbit_s) >= below_gbit_s:
        return False, f"; not compressed: links between hosts have {below_gbit_s:g} Gbit/s or more"
    told = f"{min(with_it) * 1e3:.3g} ms expected, {min(without) * 1e3:.3g} ms without"
    worth = min(with_it) < _WORTH * min(without)
    return worth, f"; compressed: {told}" if worth else f"; not compressed: {told}"
