"""How ranks that submit operations in different orders agree on one. Pure: who says what, not how.

Each rank tells rank 0 what it has submitted, and when it has done its part of a cycle; rank 0 answers all of
them with what to carry out next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from ..methods import CommunicationPattern, Operation
from .order import Waiting, next_cycle


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank submitted."""

    serial: int
    """From 0 on, of this rank's."""
    name: str
    """The same on all of the operation's ranks. Of several of one name the first is meant that the rank has
    not submitted yet."""
    operation: Operation
    op: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    """Of the whole vector."""
    ranks: tuple[int, ...]
    """Ascending."""
    priority: float

    def __str__(self) -> str:
        among = ", ".join(map(str, self.ranks))
        return f"{self.operation.value} {self.name!r} among ranks {among}"


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """From a rank to rank 0."""

    rank: int
    submitted: Submission | None = None
    done: int | None = None
    """The cycle in which it has done its part."""
    error: str | None = None
    """Why it could not."""
    used: list[tuple[int, float]] | None = None
    """Share of hosts' links that others use, as far as this rank knows."""
    leaving: bool = False
    """It submits nothing more."""
    ends: bool = False
    """From rank 0: nobody can go on."""


class Start(msgspec.Struct, kw_only=True):
    """An operation, before its first chunk."""

    serials: dict[int, int]
    """By rank."""
    pattern: CommunicationPattern
    chunks: int


class Piece(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A chunk of an operation."""

    number: int
    ranks: tuple[int, ...]
    chunk: int
    start: Start | None = None


class Failure(msgspec.Struct, kw_only=True):
    """An operation that is given up."""

    serials: dict[int, int]
    reason: str


class Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """From rank 0 to the ranks that it concerns."""

    cycle: int = 0
    run: list[Piece] = []
    failed: list[Failure] = []
    left: list[int] = []
    """Ranks for which nothing more will come."""
    broken: str | None = None
    """Why nobody can go on."""

    def concerns(self, size: int) -> list[int]:
        """Which of ``size`` ranks."""
        if self.broken is not None:
            return list(range(size))
        found = {rank for piece in self.run for rank in piece.ranks}
        return sorted(found.union(self.left, *(failure.serials for failure in self.failed)))


@dataclass
class _Operation:
    what: Submission
    number: int
    priority: float
    since: float
    serials: dict[int, int] = field(default_factory=dict)
    chunk: int = 0
    start: Start | None = None
    reason: str | None = None
    """Why it was given up. It is kept for the ranks that have not submitted it yet."""
    missing: set[int] = field(init=False)
    """Ranks that have not submitted it."""

    def __post_init__(self) -> None:
        self.missing = set(self.what.ranks)


class Coordinator:
    """What rank 0 knows. Times are of its own clock, in seconds."""

    def __init__(
        self,
        host_of: tuple[int, ...],
        chunk_bytes: int,
        patience_s: float,
        pattern_of: Callable[[Submission], CommunicationPattern],
    ) -> None:
        """
        Args:
            host_of: by rank.
            chunk_bytes: of the largest chunk.
            patience_s: how long a submission waits for those of other ranks.
            pattern_of: what is best for an operation.
        """
        self._host_of, self._chunk_bytes, self._patience_s = host_of, chunk_bytes, patience_s
        self._pattern_of = pattern_of
        self._operations: dict[int, _Operation] = {}
        self._by_name: dict[str, list[_Operation]] = {}
        self._failures: list[Failure] = []
        self._count = self._cycle = 0
        self._busy: set[int] = set()
        self._busy_since = 0.0
        self._leaving: set[int] = set()
        self._left: set[int] = set()
        self._used: dict[int, Mapping[int, float]] = {}
        self.broken: str | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self._host_of)

    @property
    def over(self) -> bool:
        """Whether there is nobody left to answer."""
        return self.broken is not None or len(self._left) == self.size

    def hear(self, message: Message, now: float) -> None:
        """Take in what a rank says."""
        rank = message.rank
        if message.submitted is not None:
            self._join(rank, message.submitted, now)
        if message.used is not None:
            self._used[rank] = dict(message.used)
        if message.done == self._cycle:
            self._busy.discard(rank)
        if message.leaving:
            self._leaving.add(rank)
        if message.error is not None:
            self.broken = self.broken or message.error
        if message.ends:
            self.broken = self.broken or "rank 0 has shut its queue down"

    def answer(self, now: float) -> Answer | None:
        """What to tell all ranks now; None: nothing."""
        self._give_up(now)
        answer = Answer(broken=self.broken)
        if self.broken is None and not self._busy:
            answer.run = self._next()
            if answer.run:
                self._cycle += 1
                self._busy = {rank for piece in answer.run for rank in piece.ranks}
                self._busy_since = now
        answer.cycle, answer.failed, self._failures = self._cycle, self._failures, []
        waited_for = self._busy | {
            rank for each in self._operations.values() if each.reason is None for rank in each.serials
        }
        answer.left = sorted(self._leaving - self._left - waited_for)
        self._left.update(answer.left)
        return answer if answer.run or answer.failed or answer.left or answer.broken is not None else None

    def deadline(self) -> float | None:
        """When to ask for an answer although nobody has said anything; None: never."""
        waiting = (each for each in self._operations.values() if each.reason is None and each.missing)
        times = [each.since + self._patience_s for each in waiting]
        if self._busy:
            times.append(self._busy_since + 2 * self._patience_s)
        return min(times, default=None)

    def _join(self, rank: int, what: Submission, now: float) -> None:
        same = self._by_name.setdefault(what.name, [])
        found = next((one for one in same if rank in one.missing), None)
        each = found or _Operation(what, self._count, what.priority, now)
        if found is None:
            self._operations[self._count] = each
            self._count += 1
            same.append(each)
        first = next(iter(each.serials), rank)
        each.serials[rank] = what.serial
        each.missing.discard(rank)
        each.priority = max(each.priority, what.priority)
        if each.reason is not None:
            self._failures.append(Failure(serials={rank: what.serial}, reason=each.reason))
            self._forget(each)
        elif differing := _differing(each.what, first, what, rank):
            self._fail(each, f"{each.what}: {differing}")

    def _give_up(self, now: float) -> None:
        """What some ranks do not submit, or do not finish."""
        if self._busy and now - self._busy_since >= 2 * self._patience_s:
            self.broken = (
                self.broken or f"{_ranks(sorted(self._busy))} did not do their part of a cycle in time"
            )
        for each in list(self._operations.values()):
            missing, gone = sorted(each.missing), sorted(each.missing & self._leaving)
            if each.reason is not None:
                self._forget(each)
            elif self.broken is not None:
                self._fail(each, f"{each.what}: {self.broken}")
            elif gone:
                self._fail(each, f"{each.what}: {_ranks(gone)} shut the queue down and did not submit it")
            elif missing and now - each.since >= self._patience_s:
                reason = f"{_ranks(missing)} did not submit it within {self._patience_s:.3g} s"
                self._fail(each, f"{each.what}: {reason}")

    def _fail(self, each: _Operation, reason: str) -> None:
        self._failures.append(Failure(serials=dict(each.serials), reason=reason))
        each.reason = reason
        self._forget(each)

    def _forget(self, each: _Operation) -> None:
        """Unless a rank may still submit it."""
        if each.missing <= self._leaving:
            del self._operations[each.number]
            same = self._by_name[each.what.name]
            same.remove(each)
            if not same:
                del self._by_name[each.what.name]

    def _next(self) -> list[Piece]:
        used: dict[int, float] = {}
        for told in self._used.values():
            for host, share in told.items():
                used[host] = max(used.get(host, 0.0), share)
        ready = [each for each in self._operations.values() if each.reason is None and not each.missing]
        waiting = [
            Waiting(
                number=each.number,
                priority=each.priority,
                ranks=each.what.ranks,
                hosts={self._host_of[rank] for rank in each.what.ranks},
                nbytes=-(-each.what.nbytes // self._chunks(each)),
            )
            for each in ready
        ]
        return [
            self._piece(self._operations[one.number]) for one in next_cycle(waiting, self._chunk_bytes, used)
        ]

    def _piece(self, each: _Operation) -> Piece:
        piece = Piece(number=each.number, ranks=each.what.ranks, chunk=each.chunk)
        if each.start is None:
            pattern = self._pattern_of(each.what)
            each.start = Start(serials=each.serials, pattern=pattern, chunks=self._chunks(each))
            piece.start = each.start
        each.chunk += 1
        if each.chunk == each.start.chunks:
            self._forget(each)
        return piece

    def _chunks(self, each: _Operation) -> int:
        return max(1, -(-each.what.nbytes // self._chunk_bytes))


def _differing(first: Submission, rank: int, other: Submission, its: int) -> str:
    """In what two submissions of the same name differ; "": in nothing that matters."""
    return "; ".join(
        f"{name} is {_text(mine)} on rank {rank} and {_text(theirs)} on rank {its}"
        for name in ("operation", "op", "dtype", "shape", "ranks")
        if (mine := getattr(first, name)) != (theirs := getattr(other, name))
    )


def _text(value: object) -> str:
    return value.value if isinstance(value, Operation) else str(value)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
