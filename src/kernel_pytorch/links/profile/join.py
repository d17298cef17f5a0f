"""The calls of all ranks, matched.

No two clocks are compared. Where all ranks of a group wait for all others, they are done at the same moment,
and the last one to arrive has the shortest call: that is how long the data move, and what the calls of the
others take beyond it is waiting. A group carries out one call after the other, so the time of a call counts
from the end of the one before, if that came later than the call itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .record import CallRecord, EndRecord, GroupRecord, Header, RankRecords, StepRecord

ALL_WAIT = frozenset({"all_reduce", "all_gather", "all_to_all", "reduce_scatter", "barrier"})
"""In these no rank is done before all have called."""
POINT_TO_POINT = frozenset({"send", "recv"})


@dataclass(frozen=True, kw_only=True)
class Key:
    """What the same line of a program calls again and again."""

    group: str
    operation: str
    nbytes: int | None
    site: str

    @property
    def text(self) -> str:
        """For people: ``all_reduce 25 MB (train.py:88)``."""
        where = f" ({short_site(self.site)})" if self.site else ""
        return f"{named(self.operation, self.nbytes)}{where}"


@dataclass(frozen=True, kw_only=True)
class Collective:
    """The calls of a group's ranks that belong together."""

    group: str
    ranks: tuple[int, ...]
    """Of the group."""
    number: int
    """From 0 on, of the group's collectives."""
    calls: Mapping[int, CallRecord]
    """By rank; a rank that did not call, or whose record is lost, is missing."""
    begun: Mapping[int, float]
    """By rank, on its own clock, for calls that are done: when the group was free for the call."""

    @property
    def first(self) -> CallRecord:
        """The call of the lowest rank that has one."""
        return self.calls[min(self.calls)]

    @property
    def complete(self) -> bool:
        """Whether all ranks have a call that is done and did not fail."""
        return len(self.begun) == len(self.ranks)

    @property
    def key(self) -> Key:
        """Equal for calls that are compared with each other."""
        call = self.first
        return Key(group=self.group, operation=call.operation, nbytes=call.nbytes, site=call.site)

    @cached_property
    def lengths_s(self) -> Mapping[int, float]:
        """By rank: how long its call took, once the group was free for it."""
        return {rank: _done(self.calls[rank]) - begun for rank, begun in self.begun.items()}

    @cached_property
    def moving_s(self) -> float | None:
        """How long the data move; None: not all wait for all, or not all calls are known."""
        if not self.complete or self.first.operation not in ALL_WAIT:
            return None
        return min(self.lengths_s.values())

    def waiting_s(self, rank: int) -> float | None:
        """How long a rank waits for the last one to arrive; None: not known."""
        return None if self.moving_s is None else self.lengths_s[rank] - self.moving_s

    @cached_property
    def seconds(self) -> float | None:
        """How long the operation takes: moving the data, or else the longest of the ranks' calls."""
        return self.moving_s if self.moving_s is not None else max(self.lengths_s.values(), default=None)

    @property
    def algbw(self) -> float | None:
        """Bytes per second, as nccl-tests count them: the whole vector, by the time; None: not known."""
        nbytes = self.first.nbytes
        return None if not nbytes or not self.seconds else nbytes / self.seconds

    @property
    def busbw(self) -> float | None:
        """Bytes per second that each link has to carry, whatever the number of ranks; None: not known.

        See https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md.
        """
        factor = bus_factor(self.first.operation, len(self.ranks))
        return None if self.algbw is None or factor is None else self.algbw * factor


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a job's collectives."""

    headers: Mapping[int, Header]
    """By rank; those without records are missing."""
    world_size: int
    groups: Mapping[str, tuple[int, ...]]
    """The ranks of each group."""
    collectives: tuple[Collective, ...]
    """Those of a group in their order."""
    point_to_point: Mapping[int, Sequence[CallRecord]]
    """By rank."""
    steps: Mapping[int, Mapping[int, float]]
    """By rank, and by step: when it began, on the rank's own clock."""
    ends: Mapping[int, EndRecord | None]
    """By rank; None: it was killed, or still runs."""
    counts: Mapping[str, Mapping[int, int]]
    """By group and rank: the number of collectives that the rank has called."""
    standing: Mapping[int, str]
    """By rank: file:line on which the main thread stood when the job did not go on; empty: it did."""
    notes: tuple[str, ...] = ()
    """What is missing or could not be read."""

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks of which nothing is known."""
        return tuple(rank for rank in range(self.world_size) if rank not in self.headers)

    def of_group(self, group: str) -> Iterator[Collective]:
        """The collectives of a group, in their order."""
        return (each for each in self.collectives if each.group == group)


def join(
    ranks: Sequence[RankRecords], notes: Sequence[str] = (), standing: Mapping[int, str] | None = None
) -> Run:
    """Match the calls of all ranks: in a group, those of the same number.

    What is missing or does not fit is noted, and never raised.

    Args:
        notes: what is known to be missing.
        standing: of a job that did not go on, by rank: file:line on which its main thread stood.
    """
    headers = {each.header.rank: each.header for each in ranks}
    world_size = max((max(header.world_size, rank + 1) for rank, header in headers.items()), default=0)
    groups: dict[str, tuple[int, ...]] = {}
    calls: dict[str, dict[int, dict[int, CallRecord]]] = defaultdict(dict)
    messages: dict[int, list[CallRecord]] = {rank: [] for rank in headers}
    steps: dict[int, dict[int, float]] = {rank: {} for rank in headers}
    ends: dict[int, EndRecord | None] = dict.fromkeys(headers)
    for each in ranks:
        rank = each.header.rank
        for record in each.records:
            if isinstance(record, CallRecord):
                if record.operation in POINT_TO_POINT:
                    messages[rank].append(record)
                else:
                    calls[record.group].setdefault(rank, {})[record.number] = record
            elif isinstance(record, GroupRecord):
                groups[record.name] = tuple(record.ranks)
            elif isinstance(record, StepRecord):
                steps[rank][record.step] = record.at
            elif isinstance(record, EndRecord):
                ends[rank] = record
    for group, by_rank in calls.items():
        groups[group] = tuple(dict.fromkeys([*groups.get(group, ()), *sorted(by_rank)]))
    counts = {
        group: {rank: max(by_rank.get(rank, {-1: None})) + 1 for rank in groups[group]}
        for group, by_rank in calls.items()
    }
    told = [*notes, *(note for each in ranks for note in each.notes)]
    return Run(
        headers=headers,
        world_size=world_size,
        groups=groups,
        collectives=tuple(
            each for group, by_rank in calls.items() for each in _match(group, groups[group], by_rank)
        ),
        point_to_point=messages,
        steps=steps,
        ends=ends,
        counts=counts,
        standing=standing or {},
        notes=(*told, *_unequal(counts, headers, world_size)),
    )


def _unequal(
    counts: Mapping[str, Mapping[int, int]], headers: Mapping[int, Header], world_size: int
) -> list[str]:
    """What is missing."""
    missing = [rank for rank in range(world_size) if rank not in headers]
    notes = [f"no records of {named_ranks(missing)}"] if missing else []
    for group, count in counts.items():
        there = {rank: number for rank, number in count.items() if rank in headers}
        if len(set(there.values())) > 1:
            numbers = ", ".join(f"rank {rank}: {number}" for rank, number in sorted(there.items()))
            notes.append(f"group {group!r}: the ranks have unequal numbers of calls ({numbers})")
    return notes


def _match(
    group: str, ranks: tuple[int, ...], by_rank: Mapping[int, Mapping[int, CallRecord]]
) -> Iterator[Collective]:
    free: dict[int, float] = {}
    for number in sorted(set().union(*by_rank.values())):
        calls = {rank: own[number] for rank in ranks if number in (own := by_rank.get(rank, {}))}
        begun = {}
        for rank, call in calls.items():
            if call.done is None or call.error is not None:
                continue
            before = free.get(rank, call.posted)
            begun[rank] = before if call.posted < before < call.done else call.posted
            free[rank] = max(free.get(rank, call.done), call.done)
        yield Collective(group=group, ranks=ranks, number=number, calls=calls, begun=begun)


def _done(call: CallRecord) -> float:
    assert call.done is not None
    return call.done


def bus_factor(operation: str, size: int) -> float | None:
    """Share of the vector that a link of each rank has to carry; None: nccl-tests do not say."""
    if operation == "all_reduce":
        return 2 * (size - 1) / size
    if operation in ("all_gather", "reduce_scatter", "all_to_all"):
        return (size - 1) / size
    return 1.0 if operation in ("broadcast", "reduce") else None


def named(operation: str, nbytes: int | None) -> str:
    """For people: ``all_reduce 25 MB``, in powers of 1,024, as sizes of buckets and messages are given."""
    if not nbytes:
        return operation
    size, unit = float(nbytes), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{operation} {size:.3g} {unit}"


def short_site(site: str) -> str:
    """``/home/me/train.py:88`` is ``train.py:88``."""
    return site.rpartition("/")[2]


def named_ranks(ranks: Sequence[int]) -> str:
    """For people: ``rank 2``, ``ranks 1 and 3``."""
    *others, last = [str(rank) for rank in ranks]
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"
