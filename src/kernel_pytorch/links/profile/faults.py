"""Calls that do not fit together: other operations, skipped ones, ranks that never came."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...watch.health.evidence import Evidence, HealthState
from .disagree import described, differences
from .finding import Finding, at
from .join import ALL_WAIT, Collective, Run, named, named_ranks, short_site
from .record import CallRecord

_Signature = tuple[object, ...]
_Sign = Callable[[CallRecord], _Signature]
_SIGNS: tuple[_Sign, ...] = (
    lambda call: (call.step, call.operation, call.nbytes, call.site),
    lambda call: (call.step, call.operation),  # ranks may make the same call on different lines
)
"""By what calls are told apart, the sharpest first."""


def faults(run: Run) -> list[Finding]:
    """Disagreements, skipped calls and missing ranks of all groups."""
    found: list[Finding] = []
    gone: dict[int, list[Finding]] = defaultdict(list)
    for group in run.counts:
        calls = _GroupCalls(run, group)
        if calls.collectives:
            found += [*calls.skipped(), *calls.disagreements(), *calls.alone()]
            for rank, finding in calls.missing():
                gone[rank].append(finding)
    # Who hangs elsewhere may be missing here because of that.
    hanging = {r for each in run.collectives for r in each.calls if r not in each.begun}
    culprits = set(gone) - hanging or set(gone)
    return found + [min(gone[rank], key=lambda f: f.evidence.since_s) for rank in sorted(culprits)]


@dataclass(frozen=True)
class _Skip:
    rank: int
    first: int
    """Number of the first call that may be the one."""
    last: int
    count: int
    """Calls that were skipped."""


class _GroupCalls:
    """The calls of a group."""

    def __init__(self, run: Run, group: str) -> None:
        self._run = run
        self.collectives = list(run.of_group(group))
        self._by_number = {each.number: each for each in self.collectives}
        self._counts = {rank: n for rank, n in run.counts[group].items() if rank in run.headers}
        counts = Counter(self._counts.values())
        self._usual = max(counts, key=lambda n: (counts[n], n), default=0)
        """Number of calls of most ranks."""
        skips = _believed([self._skip(rank) for rank in self._counts])
        self._skips = [skip for skip in skips if not self._may_have_stopped(skip)]
        self._unclear = {skip.rank: skip for skip in skips if skip not in self._skips}

    def skipped(self) -> Iterator[Finding]:
        """Calls that a rank left out, if that explains all that follows."""
        for skip in self._skips:
            numbers = range(skip.first, skip.last + 1)
            told = list(dict.fromkeys(described(self._others(number, skip.rank)) for number in numbers))
            calls = "" if skip.count == 1 else f"{skip.count} calls, "
            if len(numbers) == 1:
                text = f"rank {skip.rank} skipped {calls}{told[0]}"
            elif len(told) == 1:
                text = f"rank {skip.rank} skipped {calls}one of these {len(numbers)}: {told[0]}"
            else:
                text = f"rank {skip.rank} skipped {calls}one of these {len(numbers)}: {told[0]} to {told[-1]}"
            call = self._others(skip.first, skip.rank)
            yield self._finding("skipped_call", (skip.rank,), call, text, skip.count)

    def missing(self) -> Iterator[tuple[int, Finding]]:
        """Ranks for which the others waited in vain."""
        each, absent = self._in_vain()
        if each is not None and not self._most(each, absent):
            for rank in absent:
                text = f"rank {rank} never came to {described(each.first)}; {self._last_of(rank)}"
                if (skip := self._unclear.get(rank)) is not None:
                    before = skip.last - skip.first
                    equal = "the equal call" if before == 1 else f"one of the {before} equal calls"
                    text += f"; or it skipped {equal} before"
                yield rank, self._finding("missing_rank", (rank,), each.first, text)

    def alone(self) -> Iterator[Finding]:
        """A call that most ranks do not make."""
        each, absent = self._in_vain()
        if each is not None and self._most(each, absent):
            who, others = tuple(each.calls), named_ranks(absent)
            text = f"only {named_ranks(who)} called {described(each.first)}; {others} never came"
            yield self._finding("disagreement", who, each.first, text)

    def disagreements(self) -> Iterator[Finding]:
        """What differs between calls that are carried out as one, up to the first that was skipped."""
        until = min((skip.first for skip in self._skips), default=None)
        seen: dict[tuple[str, tuple[int, ...], str], list[tuple[Collective, str]]] = defaultdict(list)
        for each in self.collectives:
            if until is not None and each.number >= until:
                break
            for difference in differences(each):
                site = each.calls[difference.ranks[0]].site
                seen[difference.field, difference.ranks, site].append((each, difference.text))
        for (_, ranks, _), found in seen.items():
            first, text = found[0]
            again = f"; {len(found)} times in all" if len(found) > 1 else ""
            yield self._finding("disagreement", ranks, first.calls[ranks[0]], text + again, len(found))

    def _in_vain(self) -> tuple[Collective | None, tuple[int, ...]]:
        """The first collective that nobody is done with and to which ranks did not come, and these."""
        skipping = {skip.rank for skip in self._skips}
        for each in self.collectives:
            absent = tuple(
                rank
                for rank in each.ranks
                if rank not in skipping and each.number >= self._counts.get(rank, 0)
            )
            if absent and not each.begun and self._in_trouble(each, absent):
                return each, absent
        return None, ()

    def _in_trouble(self, each: Collective, absent: Sequence[int]) -> bool:
        """Whether a call failed, a rank came to its end, or the job was found hanging.

        Else all were killed at once, and some had not called yet.
        """
        failed = any(call.error is not None for call in each.calls.values())
        ended = any(self._run.ends.get(rank) is not None for rank in [*each.calls, *absent])
        return failed or ended or bool(self._run.standing)

    def _most(self, each: Collective, absent: Sequence[int]) -> bool:
        return sum(rank in self._run.headers for rank in absent) > len(each.calls)

    def _skip(self, rank: int) -> _Skip | None:
        """The calls without which a rank's others fit; None: it skipped none, or just came to its end.

        Where all hang at once, a rank that skipped calls has made as many as the others: its last ones are
        those that the others did not come to.
        """
        own, usual = self._counts[rank], self._usual
        later = [self._by_number[number] for number in range(own, usual) if number in self._by_number]
        if any(each.begun and each.first.operation in ALL_WAIT for each in later):
            return None  # the rank did call, or the others could not be done; only its record is lost
        if own >= usual and self.collectives[-1].begun:
            return None  # nothing hangs
        for sign in _SIGNS:
            mine = [self._own_sign(number, rank, sign) for number in range(own)]
            theirs = [self._sign(number, rank, sign) for number in range(usual)]
            before = _common(mine, theirs)
            for count in range(max(usual - own, 1), usual):
                kept = usual - count
                if kept < own and kept <= before:
                    break
                if not all(_agree(mine[n], theirs[n + count]) for n in range(before, kept)):
                    continue
                if after := _common(mine[:kept][::-1], theirs[::-1]):
                    return _Skip(rank, kept - after, before, count)
            if before == own < usual:
                return None
        return self._skip_at_the_end(rank) if own >= usual else None

    def _may_have_stopped(self, skip: _Skip) -> bool:
        """Whether a rank may as well have made equal calls up to its end, and not come to the last ones."""
        end = self._run.ends.get(skip.rank)
        left_in_good_order = end is not None and end.error is None
        return skip.last == self._counts[skip.rank] and not left_in_good_order

    def _skip_at_the_end(self, rank: int) -> _Skip | None:
        """A rank that hangs in the call that comes after the one in which the others hang skipped that."""
        last = self.collectives[-1]
        mine, theirs = last.calls.get(rank), self._others(last.number, rank)
        if mine is None or self._sign(last.number, rank, _place) == _place(mine):
            return None
        for number in range(last.number - 1):
            if number in self._by_number and number + 1 in self._by_number:
                one, next_one = (self._others(n, rank) for n in (number, number + 1))
                same = [_place(one), _place(next_one)] == [_place(theirs), _place(mine)]
                if same and next_one.step - one.step == mine.step - theirs.step:
                    return _Skip(rank, self._first_equal(last.number, rank), last.number, 1)
        return None

    def _first_equal(self, number: int, rank: int) -> int:
        """The first of the calls up to this one that differ in nothing."""
        sign = _SIGNS[0](self._others(number, rank))
        while number - 1 in self._by_number and _SIGNS[0](self._others(number - 1, rank)) == sign:
            number -= 1
        return number

    def _own_sign(self, number: int, rank: int, sign: _Sign) -> _Signature | None:
        each = self._by_number.get(number)
        return None if each is None or rank not in each.calls else sign(each.calls[rank])

    def _sign(self, number: int, rank: int, sign: _Sign) -> _Signature | None:
        """Signature of most ranks' calls, rather not of ``rank`` if as many have it; None: no record."""
        each = self._by_number.get(number)
        if each is None:
            return None
        signs = Counter(map(sign, each.calls.values()))
        mine = self._own_sign(number, rank, sign)
        return max(signs, key=lambda found: (signs[found], found != mine))

    def _others(self, number: int, but: int) -> CallRecord:
        """A call such as most other ranks make."""
        each = self._by_number[number]
        calls = [call for rank, call in each.calls.items() if rank != but]
        usual = Counter(map(_place, calls)).most_common(1)
        return next((call for call in calls if _place(call) == usual[0][0]), each.first)

    def _last_of(self, rank: int) -> str:
        if rank not in self._run.headers:
            return "there are no records of it"
        calls = [each.calls[rank] for each in self.collectives if rank in each.calls]
        last = f"its last call was {described(calls[-1])}" if calls else "it called nothing in this group"
        if site := self._run.standing.get(rank):
            last += f", and it stood at {short_site(site)}"
        end = self._run.ends.get(rank)
        if end is not None and end.error is not None:
            last += f", and it ended with: {end.error}"
        return last

    def _finding(
        self, kind: str, ranks: tuple[int, ...], call: CallRecord, text: str, value: float = 1
    ) -> Finding:
        caller = next(r for each in self.collectives for r, c in each.calls.items() if c is call)
        return Finding(
            evidence=Evidence(
                kind=kind,
                state=HealthState.FAILED,
                value=value,
                threshold=1,
                since_s=at(self._run, caller, call.posted),
                text=text,
            ),
            ranks=ranks,
            collective=named(call.operation, call.nbytes),
            site=call.site,
            step=call.step or None,
            ms_per_step=None,
            ms_in_all=None,
        )


def _believed(found: Sequence[_Skip | None]) -> list[_Skip]:
    """Not all ranks can have skipped what the others called: then those of the fewest calls, or none.

    Args:
        found: by rank.
    """
    skips = [skip for skip in found if skip is not None]
    if 2 * len(skips) <= len(found):
        return skips
    fewest = min(skip.count for skip in skips)
    skips = [skip for skip in skips if skip.count == fewest]
    return skips if 2 * len(skips) <= len(found) else []


def _common(mine: Sequence[_Signature | None], theirs: Sequence[_Signature | None]) -> int:
    """How many calls agree from the beginning on; one without a record agrees with any."""
    for number, (own, other) in enumerate(zip(mine, theirs, strict=False)):
        if not _agree(own, other):
            return number
    return min(len(mine), len(theirs))


def _agree(own: _Signature | None, other: _Signature | None) -> bool:
    return own is None or other is None or own == other


def _place(call: CallRecord) -> _Signature:
    return call.operation, call.site, call.nbytes
